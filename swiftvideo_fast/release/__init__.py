"""Sampling clips from a model on disk, and exporting it for other programs."""

from swiftvideo_fast.release import export, sample

__all__ = ["export", "sample"]
