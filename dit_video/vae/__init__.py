"""VAEs, our own and published ones, and the codec between pixels and latents."""
