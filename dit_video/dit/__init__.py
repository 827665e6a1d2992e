"""Denoising transformers (DiT, Latte, MMDiT, Wan), and the conditions and known frames that they take."""
