"""Verification of a user's experiment: sharding changes no numbers, and resuming after kills is exact."""
