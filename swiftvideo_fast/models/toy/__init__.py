"""The demo's family: a small Wan with a codec and a text embedding that need no download."""
