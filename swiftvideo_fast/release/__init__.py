"""From a model on disk to clips, and to files that other programs load."""

from swiftvideo_fast.release import export, sample

__all__ = ["export", "sample"]
