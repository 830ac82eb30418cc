"""The loop, and what keeps a run: averages, checkpoints, logs."""
