"""Networks as others publish them: families, their names of weights, their schedulers."""
