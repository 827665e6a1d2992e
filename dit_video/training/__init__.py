"""Optimizer, step, loop and record: knows the Task and Evaluator protocols only."""
