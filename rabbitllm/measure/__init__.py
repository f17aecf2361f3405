"""How fast this machine is, and how fast a model generates on it."""
