"""From video files to batches: NumPy only, knows no network and no accelerator."""
