"""Storage on unreliable disks and buckets: retries, error messages with a remedy, and local copies of runs in a bucket."""
