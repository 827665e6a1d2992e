"""Video VAEs (VideoVAE, Wan, CogVideoX, AutoencoderKL), their losses, and the latent codec."""
