"""The language of right-hand sides and steps, traced to programs of operations or read as UFL."""
