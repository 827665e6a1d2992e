"""Tasks: what is learnt. Network, diffusion process and batch meet here and nowhere else."""
