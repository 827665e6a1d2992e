"""Frozen text encoders as others have published them, and their tokenizers."""
