"""What a step minimises.  One file an objective; train/recipe.py has their table."""
