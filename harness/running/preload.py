"""What takes long the first time: the fork server does it once, and each cell starts with it.

Imports, and what a release works out when it first loads a model and generates: patterns compiled,
classes inspected. The model is not a cell's, and its weights are gone before a cell begins. No part
of the engine runs here, for it keeps threads, which a fork does not have.
"""

from __future__ import annotations

import gc
import io
import os
import tempfile
from contextlib import redirect_stderr, suppress

import accelerate.hooks
import torch
import torch._inductor.compile_fx
import transformers.generation.utils
import transformers.modeling_utils
from tqdm import tqdm

from harness.matrix import load_matrix

__all__ = ["accelerate"]

LACKING = (AttributeError, ImportError, RuntimeError)
"""What transformers raises of a class that a release does not have, or cannot import."""
BROKEN = (*LACKING, LookupError, NameError, OSError, SyntaxError, TypeError, ValueError)
"""What a broken release or engine raises: it breaks its cells, too, which then say so."""


def import_models() -> None:
    """Imports the modelling code of the matrix's architectures, as far as the release has it."""
    for name in {row.model_class for row in load_matrix().architectures}:
        with suppress(*LACKING):
            getattr(transformers, name)


def import_measuring() -> None:
    """Imports what measures, and the engine."""
    from harness.matrix import CHECKS, DEALT
    from harness.measuring import checks

    for name in CHECKS + DEALT:
        checks.load(name)
    import rabbitllm.auto  # noqa: F401


def load_a_model() -> None:
    """Has stock write a small Llama, load it and generate, on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder)
        model.generate(torch.ones((1, 2), dtype=torch.long), max_new_tokens=2, do_sample=False)


# Whether there is CUDA is asked without starting it: what a fork inherits of it cannot be used.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# No thread is started here: a fork would lack it, and inherit the locks that it holds.
torch.set_num_threads(1)
tqdm.monitor_interval = 0
# Releases start CUDA as they load a model, 5.17.0 for one: then a cell begins with what is above.
for step in () if torch.cuda.is_available() else (import_models, import_measuring, load_a_model):
    with suppress(*BROKEN), redirect_stderr(io.StringIO()):
        step()

# Out of the collector's sight: a collection in a cell's process then looks only at what the cell
# made.
gc.collect()
gc.freeze()
