"""Cells in processes, and releases in environments: which run, in what order, and what is left."""
