"""How far greedy answers in a batch are those that each prompt gets alone."""
