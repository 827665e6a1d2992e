"""Worlds that answer to actions: a small one of its own, and those of Gymnasium (extra `worlds`)."""
