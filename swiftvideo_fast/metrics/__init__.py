"""Metrics: distances between sets of clips, and figures of single clips."""
