"""What records mean: expected failures, known causes, comparisons."""
