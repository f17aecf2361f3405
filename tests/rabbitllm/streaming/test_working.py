from __future__ import annotations

import gc
import multiprocessing
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from rabbitllm.streaming.devices import CpuTransfer, CudaTransfer
from rabbitllm.streaming.working import (
    HOLES,
    Work,
    read_geometry,
    taken_bytes,
    working_bytes,
)
from rabbitllm.utils.glibc import map_large_allocations

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
GEOMETRY = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
    "vocab_size": 100,
}


def working(model_type: str, work: Work, attention: str = "sdpa", **fields: Any) -> int:
    config = AutoConfig.for_model(model_type, **fields)
    config._attn_implementation = attention
    return working_bytes(read_geometry(config), torch.bfloat16, CPU, work) - CpuTransfer.workspace


def test_a_prefill_takes_the_sum_of_its_parts() -> None:
    kept = 2 * 2 * 32
    layer = 4 * 64 + 3 * 512
    elements = 10 * (kept + layer) + 100 + 64
    passing = elements * 2 + (2 * 10 * 64 + 4 * 100) * 4
    assert working("llama", Work(1, 10), **GEOMETRY) == 10 * 3 * kept * 2 + int(HOLES * passing)


def test_work_of_more_takes_more() -> None:
    least = working("llama", Work(1, 100), **GEOMETRY)
    cached = 3 * 2 * 2 * 32 * 2
    assert working("llama", Work(1, 100, past=50), **GEOMETRY) >= least + 50 * cached
    assert working("llama", Work(3, 100), **GEOMETRY) >= 3 * least
    assert working("llama", Work(1, 100, logits=100), **GEOMETRY) >= least + 99 * 100 * 2
    eager = working("llama", Work(1, 100), "eager", **GEOMETRY)
    assert eager >= least + 4 * 100 * 100 * 10


def test_a_window_bounds_the_cache() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    fields = GEOMETRY | {"layer_types": kinds, "sliding_window": 16}
    config = AutoConfig.for_model("gemma2", **fields)
    geometry = read_geometry(config)
    assert geometry.cached(Work(2, 100, past=20)) == 2 * (16 + 16 + 120) * 2 * 2 * 32


def test_of_a_cache_off_the_device_two_layers_and_what_slides_are_there() -> None:
    kinds = ["full_attention"] * 5 + ["sliding_attention"]
    fields = GEOMETRY | {"num_hidden_layers": 6, "layer_types": kinds, "sliding_window": 16}
    geometry = read_geometry(AutoConfig.for_model("gemma2", **fields))
    token = 2 * 2 * 32
    assert geometry.cached(Work(2, 100, past=20)) == 2 * (16 + 5 * 120) * token
    assert geometry.cached(Work(2, 100, past=20, offloaded=True)) == 2 * (16 + 2 * 120) * token
    single = read_geometry(AutoConfig.for_model("llama", **GEOMETRY | {"num_hidden_layers": 1}))
    assert single.cached(Work(1, 9, offloaded=True)) == 9 * token


def test_what_is_taken_before_is_the_cache_and_the_context() -> None:
    geometry = read_geometry(AutoConfig.for_model("llama", **GEOMETRY))
    work = Work(2, 7, past=20, logits=7)
    cache = 2 * 20 * 3 * 2 * 2 * 32 * 2
    assert taken_bytes(geometry, torch.bfloat16, CPU, work) == cache
    assert taken_bytes(geometry, torch.bfloat16, CUDA, work) == cache + CudaTransfer.outside
    on_cuda = working_bytes(geometry, torch.bfloat16, CUDA, work)
    on_cpu = working_bytes(geometry, torch.bfloat16, CPU, work)
    assert on_cuda - on_cpu == CudaTransfer.outside + CudaTransfer.workspace - CpuTransfer.workspace


def test_work_that_is_cut_ends_where_the_whole_does() -> None:
    assert Work(2, 100, past=10, logits=100).cut(30) == Work(2, 30, past=80, logits=30)
    assert Work(2, 20).cut(30) == Work(2, 20)


@pytest.mark.parametrize(
    ("model_type", "layers", "width"),
    [
        ("llama", 32, 4096),
        ("mamba", 32, 768),
        ("falcon", 32, 4544),
        ("gpt2", 12, 768),
        ("gemma3n_text", 35, 2 * 256),
    ],
)  # fmt: skip
def test_architectures_with_other_fields_are_understood(
    model_type: str, layers: int, width: int
) -> None:
    config = AutoConfig.for_model(model_type)
    geometry = replace(read_geometry(config), windows=(0,) * layers)
    assert geometry.cached(Work(1, 1000)) >= 1000 * 2 * layers * width


SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16_000,
    "max_position_embeddings": 8192,
}
CAPPED = SMALL | {"head_dim": 32, "vocab_size": 128_000, "final_logit_softcapping": 30.0}
FAMILIES = {
    "llama": ("llama", SMALL),
    "large vocabulary": ("gemma3_text", SMALL | {"head_dim": 64, "vocab_size": 128_000}),
    "experts": ("mixtral", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "many small experts": (
        "qwen3_moe",
        SMALL
        | {"moe_intermediate_size": 256, "num_experts": 16, "num_experts_per_tok": 8}
        | {"head_dim": 32},
    ),
    "stepwise activation": (
        "gpt2",
        {"n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 4096},
    ),
    "capped logits": ("gemma2", CAPPED),
}  # fmt: skip
WORKS = {
    ("sdpa", "prompt"): Work(1, 4000),
    ("sdpa", "batch"): Work(4, 1000),
    ("eager", "prompt"): Work(1, 1200),
    ("sdpa", "logits"): Work(1, 800, logits=800),
    ("sdpa", "loss"): Work(1, 800, logits=800, scored=True),
}


def most_resident() -> int:
    """Bytes: the most memory that this process had since it last had Linux forget."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def measure(
    family: str, attention: str, work: Work, dtype: torch.dtype = torch.float32
) -> tuple[int, int]:
    """Bytes that stock's forward takes at its peak, in this process, and what was estimated."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    map_large_allocations()  # as the engine does where an estimate matters
    model_type, fields = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **fields)
    torch.set_default_dtype(dtype)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model.requires_grad_(False)  # as streamed weights are: torch then copies a head, or not
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model(torch.ones(1, 8, dtype=torch.long))
    ids = torch.ones(work.sequences, work.new, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[:-1, :5] = 0
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = most_resident()
    kept = {} if work.logits == work.new else {"logits_to_keep": work.logits}
    labels = {"labels": ids} if work.scored else {}
    model(ids, attention_mask=mask, use_cache=True, **kept, **labels)
    estimated = working_bytes(read_geometry(model.config), dtype, CPU, work)
    return most_resident() - before, estimated


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own count of memory")
@pytest.mark.parametrize(("attention", "kind"), WORKS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "capped logits"])
def test_the_estimate_holds_what_a_forward_takes_and_not_much_more(
    family: str, attention: str, kind: str
) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, estimated = pool.apply(measure, (family, attention, WORKS[attention, kind]))
    assert taken > 20 << 20, "nothing worth measuring"
    assert taken <= estimated <= 2.2 * taken + CpuTransfer.workspace


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own count of memory")
@pytest.mark.parametrize(
    ("family", "attention", "work"),
    [
        pytest.param(
            "large vocabulary",
            "sdpa",
            Work(4, 300),
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="this processor multiplies bfloat16 without copying the head",
            ),
        ),
        ("capped logits", "eager", Work(1, 600, logits=600)),
    ],
)
def test_copies_of_a_head_and_steps_behind_it_are_counted(
    family: str, attention: str, work: Work
) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, estimated = pool.apply(measure, (family, attention, work, torch.bfloat16))
    assert taken > 150 << 20, "nothing worth measuring"
    assert taken <= estimated <= 2.2 * taken + CpuTransfer.workspace
