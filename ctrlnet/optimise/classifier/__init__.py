"""The convex problem of the classifier alone, its preconditioner, and its update for fixed controls."""
