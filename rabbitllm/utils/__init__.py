"""What does not belong to one part: memory, sizes, the platform."""
