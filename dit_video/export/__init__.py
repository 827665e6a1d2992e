"""Weights and programs for the rest of the world, checked against what they came from."""
