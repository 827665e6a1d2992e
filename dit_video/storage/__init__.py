"""Disks and buckets that fail: what to wait for, what to say, and copies of what is in a bucket."""
