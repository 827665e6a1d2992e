"""Proofs on a user's own experiment: that splitting it over devices changes nothing, and that killing it loses nothing."""
