"""What records mean: expected failures, comparisons, causes."""
