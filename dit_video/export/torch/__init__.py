"""Export to plain PyTorch: self-contained module files with weights."""
