"""The demo's model family: a small Wan, with a codec and text embedding that need no download."""
