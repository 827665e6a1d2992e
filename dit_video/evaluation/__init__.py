"""What says how good a run is: FVD, reconstruction, held-out error."""
