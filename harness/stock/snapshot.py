"""What a release of transformers is to code on top of it: a script that runs in its environment.

`python snapshot.py TYPE...` prints JSON, fact -> value. A fact is a subject, a colon and a name:
"llama: config rope_theta", "caches: DynamicCache.update". No weight is made.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

LAYERS = 2
"""Of a model that is built: names of parameters say no more with others."""
INTERFACES = {
    "caches": (
        "transformers.cache_utils",
        r"(Dynamic|Static|Quantized|EncoderDecoder)Cache|Cache|\w*Layer",
    ),
    "masks": ("transformers.masking_utils", r"create_\w+|\w+_mask_function"),
    "layers": ("transformers.modeling_layers", r"GradientCheckpointingLayer"),
    "rope": ("transformers.modeling_rope_utils", r"\w+"),
}
"""Subject -> a module, and the names in it that models and libraries use."""


def facts(types: list[str]) -> dict[str, str]:
    """Fact -> value, of the interfaces and of model types."""
    found: dict[str, str] = {}
    for subject, (module, pattern) in INTERFACES.items():
        found |= {f"{subject}: {k}": v for k, v in _interface(module, pattern)}
    from transformers import CONFIG_MAPPING
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found |= {f"attention: {name}": "there" for name in ALL_ATTENTION_FUNCTIONS.valid_keys()}
    for name in types:
        if name not in CONFIG_MAPPING:
            continue
        try:
            found |= {f"{name}: {k}": v for k, v in _of_type(name)}
        except Exception as error:  # that a release cannot build a type is what it is to its users
            found[f"{name}: builds"] = " ".join(f"no, {type(error).__name__}: {error}".split())[
                :200
            ]
    return found


def _interface(module: str, pattern: str) -> Iterator[tuple[str, str]]:
    """The signatures of functions, and of the public methods of classes, of a module's own."""
    for name, thing in sorted(vars(importlib.import_module(module)).items()):
        if name.startswith("_") or getattr(thing, "__module__", "") != module:
            continue
        if not re.fullmatch(pattern, name):
            continue
        if inspect.isfunction(thing):
            yield name, _signature(thing)
        elif inspect.isclass(thing):
            for method, function in sorted(vars(thing).items()):
                if inspect.isfunction(function) and (method[0] != "_" or method == "__init__"):
                    yield f"{name}.{method}", _signature(function)


def _of_type(name: str) -> Iterator[tuple[str, str]]:
    """The config's defaults, parameters with their shapes, and what the layers take."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for field, value in AutoConfig.for_model(name).to_dict().items():
        if field not in ("transformers_version", "dtype", "torch_dtype"):
            yield f"config {field}", repr(value)[:200]
    with torch.device("meta"):
        config = AutoConfig.for_model(name, num_hidden_layers=LAYERS)
        model = AutoModelForCausalLM.from_config(config)
    yield "builds", "yes"
    shapes: dict[str, list[int]] = {}
    for parameter, tensor in model.named_parameters():
        # The last layer stands for all of its kind.
        shapes[re.sub(r"\.\d+\.", ".*.", parameter)] = list(tensor.shape)
    for parameter, shape in shapes.items():
        yield f"parameter {parameter}", str(shape)
    for layer in _layers(model):
        yield f"layer {type(layer).__name__}", _signature(type(layer).forward)


def _layers(model: Any) -> list[Any]:
    """One of each kind of block."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = (m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    return list({type(block): block for block in blocks}.values())


def _signature(function: Any) -> str:
    """Names and defaults of what it takes, without types."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        bare = parameter.replace(annotation=inspect.Parameter.empty)
        parts.append(re.sub(r" at 0x[0-9a-f]+", "", str(bare)))
    return f"({', '.join(parts)})"


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1:]), indent=0))
