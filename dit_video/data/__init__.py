"""Data pipeline: sources, transforms, caches and the loader of batches; NumPy only, without JAX."""
