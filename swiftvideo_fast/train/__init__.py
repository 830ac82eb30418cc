"""Training: loop, engines, averages, checkpoints, logs."""
