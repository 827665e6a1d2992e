"""Published weights: safetensors and PyTorch files, mapping of parameter names, digests."""
