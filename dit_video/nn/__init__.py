"""Neural network layers: attention, convolutions, norms, MLPs, positions, modulation."""
