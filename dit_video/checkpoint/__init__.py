"""Steps of a run, saved whole or not at all: Orbax, digests of every array, retention."""
