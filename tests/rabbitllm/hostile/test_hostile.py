"""Checkpoints made to cost gigabytes or hours load rightly or are refused for little."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")

Change = Callable[[Path], None]
Outcome = tuple[str, float, float]
SECONDS, MIB = 10, 200
TABLES = 1024
"""MiB for models whose own constructors make tables of positions, some times over."""
LIMITS = {"gpt_neo": TABLES, "gpt_bigcode": TABLES, "ctrl": TABLES}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_bigcode": {},
    "ctrl": {"dff": 96},
    "xglm": {"d_model": 64, "attention_heads": 4, "num_layers": 4, "ffn_dim": 96},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {"kv_lora_rank": 16, "q_lora_rank": 32, "n_routed_experts": 8},
}
HUGE = 10**9


def fields(name: str = "config.json", **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | values))

    return change


def text(name: str, make: Callable[[], str]) -> Change:
    return lambda folder: (folder / name).write_text(make()) and None


def hole(name: str) -> Change:
    """100 MB that take no space."""

    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(100_000_000)

    return change


def header(make: Callable[[], tuple[str, int]]) -> Change:
    """Replaces the weights by a header and so many bytes of data, which take no space."""

    def change(folder: Path) -> None:
        raw, data = make()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw.encode())
            file.truncate(8 + len(raw) + data)

    return change


def tensors(count: int) -> tuple[str, int]:
    entry = '"model.layers.{0}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    return "{" + ",".join(entry.format(i, i + 1) for i in range(count)) + "}", count


def one(shape: list[int], begin: int = 0, end: int = 8) -> tuple[str, int]:
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    return json.dumps({"model.norm.weight": entry, "lm_head.weight": entry}), 8


def index(count: int) -> str:
    shards = ",".join(f'"k{i}":"model.safetensors"' for i in range(count))
    return f'{{"weight_map":{{{shards}}}}}'


FIELDS: dict[str, dict[str, list[Any]]] = {
    "llama": {
        "num_hidden_layers": [HUGE, 9999, 0, -1],
        "hidden_size": [HUGE, 10**7],
        "intermediate_size": [HUGE, 10**7, 0, -1],
        "vocab_size": [HUGE, 10**7],
        "head_dim": [HUGE, 10**7],
        "num_attention_heads": [HUGE, 0],
        "num_key_value_heads": [HUGE],
        "max_position_embeddings": [HUGE, -1],
        "num_labels": [HUGE, 9999],
        "layer_types": [["full_attention"] * 10**6],
        "rope_parameters": [
            {"rope_type": "dynamic", "factor": 1e300, "rope_theta": 1e300},
            {"rope_type": "longrope", "short_factor": [1.0] * 10**6, "long_factor": [1.0]},
        ],
        "id2label": [{str(i): "x" for i in range(10**6)}],
        "text_config": [{"num_hidden_layers": HUGE}],
    },
    "gpt_neo": {"max_position_embeddings": [HUGE, 20_000], "window_size": [HUGE]},
    "gpt_bigcode": {"n_positions": [HUGE, 20_000], "n_inner": [HUGE], "n_head": [HUGE]},
    "ctrl": {"n_positions": [HUGE, 10**6], "n_embd": [HUGE]},
    "xglm": {"max_position_embeddings": [HUGE], "num_layers": [9999]},
    "mixtral": {"num_local_experts": [HUGE, 9999], "sliding_window": [HUGE]},
    "deepseek_v3": {"qk_rope_head_dim": [HUGE], "first_k_dense_replace": [-HUGE, HUGE]},
}
CASES: dict[str, tuple[str, Change]] = {
    f"{kind}-{name}-{str(value)[:24]}": (kind, fields(**{name: value}))
    for kind, values in FIELDS.items()
    for name, hostile in values.items()
    for value in hostile
}
GENERATION = [{"num_beams": HUGE}, {"max_length": HUGE}, {"cache_config": {"max_cache_len": HUGE}}]
CASES |= {
    f"generation-{next(iter(values))}": ("llama", fields("generation_config.json", **values))
    for values in GENERATION
}
FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
CASES |= {f"{name}-long": ("llama", hole(name)) for name in FILES}
CASES |= {
    f"{name}-{kind}": ("llama", text(name, make))
    for name in FILES
    for kind, make in {
        "deep": lambda: '{"a":' * 10**6,
        "lists": lambda: "[" + "[]," * 600_000 + "[]]",
        "digits": lambda: '{"a":' + "9" * 10**6 + "}",
    }.items()
}
CASES |= {
    f"header-{name}": ("llama", header(make))
    for name, make in {
        "90,000 tensors": partial(tensors, 90_000),
        "300,000 tensors": partial(tensors, 300_000),
        "100 MB": lambda: ("{" + " " * 99_999_990 + "}", 0),
        "lists": lambda: ("[" + "[]," * 5_000_000 + "[]]", 0),
        "overflow": partial(one, [2**62, 4, 2**62]),
        "overlap": partial(one, [8]),
        "beyond": partial(one, [10**12], 0, 10**12),
    }.items()
}
CASES["index-1,000,000 keys"] = (
    "llama",
    text("model.safetensors.index.json", partial(index, 1_000_000)),
)


@pytest.fixture(scope="module")
def outcomes(
    build: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """What became of each case, seconds, and MiB at the peak."""
    root = tmp_path_factory.mktemp("hostile")
    for kind, values in TYPES.items():
        build(kind, **values).save_pretrained(root / kind)
    for number, (kind, change) in enumerate(CASES.values()):
        change(Path(shutil.copytree(root / kind, root / str(number))))
    folders = [str(root / name) for name in [*TYPES, *map(str, range(len(CASES)))]]
    loader = Path(__file__).with_name("loader.py")
    ended = subprocess.run([sys.executable, loader, *folders], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = [tuple(json.loads(line)) for line in ended.stdout.splitlines()]
    return dict(zip([*TYPES, *CASES], found, strict=True))


@pytest.mark.parametrize("kind", TYPES)
def test_without_the_hostile_part_the_checkpoint_loads(
    outcomes: dict[str, Outcome], kind: str
) -> None:
    assert outcomes[kind][0] == "loaded"


@pytest.mark.parametrize("layers", [0, -1])
def test_a_model_without_layers_is_none(outcomes: dict[str, Outcome], layers: int) -> None:
    assert outcomes[f"llama-num_hidden_layers-{layers}"][0].startswith("CheckpointError: ")


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_costs_little(outcomes: dict[str, Outcome], name: str) -> None:
    message, seconds, mib = outcomes[name]
    assert message == "loaded" or message.startswith("CheckpointError: ")
    assert seconds < SECONDS
    assert mib < LIMITS.get(CASES[name][0], MIB)
