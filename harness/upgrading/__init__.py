"""Whether to upgrade transformers, and which release broke a cell."""
