"""Ingestion: untrusted video files are probed, decoded and written into a video set."""
