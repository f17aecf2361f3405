"""What takes seconds to import: the fork server does it once, and each cell starts with it."""

import gc

import accelerate.hooks
import torch._inductor.compile_fx
import transformers.generation.utils
import transformers.modeling_utils

__all__ = ["accelerate", "torch", "transformers"]

# Out of the collector's sight: a collection in a cell's process then looks only at what the cell
# made.
gc.collect()
gc.freeze()
