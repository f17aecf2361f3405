"""What lies on disk: where a model's tensors are, and how they become parameters."""
