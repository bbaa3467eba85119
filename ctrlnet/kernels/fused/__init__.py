"""Sweeps whose layers run in one call: residual dynamics under forward Euler, and with a linear solve after each."""
