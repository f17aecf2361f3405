"""How fast checkpoints of each number format stream, beside bfloat16 in the same run."""
