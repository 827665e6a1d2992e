"""Launching a command on N hosts: local processes, Slurm, GKE, TPU VMs."""
