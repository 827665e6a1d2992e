"""Frozen text and image encoders as others have published them, and their tokenizers."""
