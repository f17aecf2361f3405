"""What other systems lack is not needed: a process without it streams, measures and runs cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROGRAM = """
import mmap, multiprocessing, os, signal, sys
from dataclasses import dataclass
import psutil

if __name__ == "__main__":  # not in the process of the cell
    import torch
    from transformers import (
        AutoModelForCausalLM, GenerationMixin, LlamaForCausalLM, PreTrainedModel
    )

# What those asked for while they were imported is their own affair.

LACKING = {  # on Windows; macOS lacks some of them
    os: "preadv posix_fadvise O_DIRECT fork forkpty register_at_fork setsid killpg geteuid getuid "
        "sched_getaffinity sched_setaffinity",
    mmap: "MADV_HUGEPAGE",
    signal: "SIGKILL SIGSTOP SIGHUP",
    psutil.Process: "num_fds",
}
for module, names in LACKING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.modules["resource"] = None
multiprocessing.get_all_start_methods = lambda: ["spawn"]


@dataclass(frozen=True)
class Answer:
    text: str


def double(number):
    assert not hasattr(os, "fork")
    os.write(1, b"spoken")
    return Answer(str(2 * number))


def stream(folder):
    from pathlib import Path
    from rabbitllm import AutoModel
    from rabbitllm.measure.limits import direct_read_bandwidth

    ids = torch.tensor([[5, 6, 7]])
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    for parameter in stock.parameters():  # out of the mapped file: kernels choose by alignment
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(False)
    for options in (
        {"host_memory": "min"},
        {"host_memory": "50%"},
        {"host_memory": "min", "dtype": "bfloat16", "compression": "lossless"},
    ):
        model = AutoModel.from_pretrained(folder, device="cpu", **options)
        expected = stock.to(model.dtype)(ids).logits
        assert torch.equal(model(ids).logits, expected), options
        assert torch.equal(model(ids).logits, expected), options
    assert direct_read_bandwidth([Path(folder) / "model.safetensors"]) > 0


def run_a_cell():
    from harness.running.isolation import CONTEXT, isolated

    ended = isolated(double, (21,), 600)
    assert CONTEXT.get_start_method() == "spawn"
    assert ended.value and ended.value["text"] == "42", ended
    assert (ended.exit_code, ended.stderr) == (0, "spoken"), ended


if __name__ == "__main__":
    torch.set_num_threads(1)
    stream(sys.argv[1])
    run_a_cell()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose every weight is stored as it is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=160,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the same in float32 and bfloat16
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_other_systems_lack_is_not_needed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", folder],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "RABBITLLM_CACHE": str(tmp_path / "stores"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
