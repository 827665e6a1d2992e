"""Storage on unreliable disks and buckets: retries, errors with a remedy, and local copies of runs in a bucket."""
