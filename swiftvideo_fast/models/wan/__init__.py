"""Wan2.1 image-to-video transformers."""
