"""Export of weights and programs (safetensors, diffusers, StableHLO, PyTorch), each compared with its run."""
