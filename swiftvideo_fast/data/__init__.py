"""Files to clips to crops: every draw seeded, every split by time."""
