"""Many prompts, one pass: sequences that share every pass over the weights.

A pass over streamed weights costs what its bytes cost, for one sequence as for sixty-four.
"""

from rabbitllm.batching.batch import Batch
from rabbitllm.batching.row import Row, Share

__all__ = ["Batch", "Row", "Share"]
