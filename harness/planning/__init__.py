"""A whole run: which cells, in which environments, in what order."""
