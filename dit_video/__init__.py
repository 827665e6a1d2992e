"""dit_video: latent video diffusion transformers in JAX. Importing this package starts nothing."""

__version__ = "0.1.0"
