"""Which weights load together, where they live, and how they reach the device in time."""
