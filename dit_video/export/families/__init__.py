"""Networks that others publish weights of: how each is recognised, and what its parameters are called elsewhere."""
