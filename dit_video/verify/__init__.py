"""Proofs on a user's own experiment: splitting it over devices changes nothing, and killing it loses nothing."""
