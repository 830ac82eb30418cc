"""Objectives: the losses that a step minimises.  One file each; train/recipe.py has their table."""
