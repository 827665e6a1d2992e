"""Layers with parameters, and no opinion about video or diffusion."""
