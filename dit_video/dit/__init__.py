"""The diffusion transformer and what it is conditioned on."""
