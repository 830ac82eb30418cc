"""What a step minimises.  One file an objective; each maps (batch, point, step) to a loss and what to log."""
