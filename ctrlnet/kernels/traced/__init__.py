"""Sweeps of any step that is given as a formula, operation by operation."""
