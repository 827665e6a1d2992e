"""Strangers' video files examined, decoded and written into a set of records."""
