"""Training objectives, one per file.  train/recipe.py holds their table."""
