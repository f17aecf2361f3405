"""Modules that the CPU computes beside the link, and weights that cross it encoded."""
