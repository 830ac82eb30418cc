"""Few-step image-to-video distillation, and forward mode for any network."""
