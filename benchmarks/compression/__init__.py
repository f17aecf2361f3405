"""What compressed weights change in a model's answers."""
