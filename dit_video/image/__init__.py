"""Frozen image encoders as others have published them."""
