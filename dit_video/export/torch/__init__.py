"""Exports to plain PyTorch: a file that runs by itself."""
