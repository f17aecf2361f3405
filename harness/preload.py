"""Imported once by the fork server, so that each cell's process starts with it: what takes seconds to import."""

import gc

import accelerate.hooks
import torch
import transformers.generation.utils
import transformers.modeling_utils

__all__ = ["accelerate", "torch", "transformers"]

# Out of the collector's sight: a collection in a cell's process then looks only at what the cell made.
gc.collect()
gc.freeze()
