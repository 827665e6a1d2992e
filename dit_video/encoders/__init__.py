"""Frozen pretrained text and image encoders (CLIP, T5, UMT5) and their tokenizers."""
