"""Other people's weight files: safetensors and torch files, names of tensors, digests."""
