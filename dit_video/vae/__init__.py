"""The causal video VAE and the codec between pixels and latents."""
