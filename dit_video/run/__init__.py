"""A run in a folder: trained, opened, imported; its record, lock, checks and caches."""
