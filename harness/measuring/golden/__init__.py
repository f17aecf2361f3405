"""Golden values: fixed checkpoints in published layouts, and the answers that are right for them.

Stock and the engine can agree on a wrong answer. These checkpoints are written without transformers
and have the same bits everywhere, so what a release answers can be held to what is committed.
"""
