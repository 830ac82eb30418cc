"""swiftvideo evaluate: generates clips of several models on many ranks, measures them, writes one page."""

from swiftvideo_fast.evaluate.command import add_arguments, run

__all__ = ["add_arguments", "run"]
