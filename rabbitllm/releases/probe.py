"""What a release of transformers makes of a checkpoint: a script that runs in its environment.

`python probe.py QUESTION ANSWER`, both files of JSON, see `Question` and `answer`. It imports
nothing of this package, which is not installed there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

TEXTS = (
    "The quick brown fox jumps over the lazy dog, twice.",
    "  def f(x):\n\treturn x**2  # 3.14\n",
    "Übergrößenträger, \N{SNOWMAN} 東京は夜の七時 \N{GRINNING FACE}",
)
CHAT = [{"role": "user", "content": "What is 2 + 2?"}]
MOST, TOP, SPREAD, STEPS = 16, 8, 24, 8
"""Tokens of the prompt at most; logits of a position that are kept: the best ones, and some spread
over the vocabulary; tokens that are generated."""
CACHES = ("cache", "past_key_values")
"""What forwards call their cache, in newer and older releases."""
PACKAGES = ("transformers", "torch", "tokenizers", "huggingface_hub", "safetensors")


class Question(TypedDict):
    """What is asked.

    Attributes:
        folder: the checkpoint.
        trust: whether its code may run.
        dtype: of the computation, such as "float32".
        backends: attention backends that are compared with the default one.
        input: token ids of the prompt; None takes the beginning of the first of `TEXTS`.
        watched: for each position of the prompt the ids whose logits are wanted; None chooses them.
        weights: whether the folder lacks weights, which are made first.
    """

    folder: str
    trust: bool
    dtype: str
    backends: list[str]
    input: list[int] | None
    watched: list[list[int]] | None
    weights: bool


def answer(question: Question) -> dict[str, Any]:
    """What the release makes of the checkpoint.

    Returns:
        versions: of packages; errors: step -> what it raised; and what the steps gave: `weights`
        (missing, mismatched: names), `backend` (the default), `input`, `watched`, `logits` (digest,
        largest, values), `tokens`, `cached` and `backends` (differences, as fractions of the
        largest logit; of a backend that is refused: why), `ids`, `chat`.
    """
    found: dict[str, Any] = {"versions": _versions(), "errors": {}}

    def step(name: str, run: Callable[[], Any]) -> Any:
        try:
            found[name] = run()
        except Exception as error:  # whatever the release or the checkpoint's code raises is found
            found["errors"][name] = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
        return found.get(name)

    if question["weights"] and step("made", lambda: make_weights(question)) is None:
        return found
    tokenizer = step("tokenizer", lambda: _tokenizer(question))
    if tokenizer is not None:
        step("ids", lambda: [tokenizer(text)["input_ids"] for text in TEXTS])
        if getattr(tokenizer, "chat_template", None):
            step("chat", lambda: _chat(tokenizer))
    model = step("model", lambda: _load(question, found))
    if model is not None:
        ids = step("input", lambda: _input(question, tokenizer, model))
        if ids:
            step("logits", lambda: _logits(model, ids, question, found))
            step("tokens", lambda: _generate(model, ids))
            step("cached", lambda: _cached(model, ids))
            step("backends", lambda: _backends(model, ids, question))
    for name in ("model", "tokenizer", "made"):
        found.pop(name, None)
    return found


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _tokenizer(question: Question) -> Any:
    if not any(Path(question["folder"]).glob("*tokenizer*")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(question["folder"], trust_remote_code=question["trust"])


def _chat(tokenizer: Any) -> str:
    text: str = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return text


def _load(question: Question, found: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        question["folder"],
        dtype=question["dtype"],
        trust_remote_code=question["trust"],
        output_loading_info=True,
    )
    model, info = loaded
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    found["weights"] = {"missing": sorted(info["missing_keys"]), "mismatched": sorted(mismatched)}
    found["backend"] = model.config._attn_implementation
    return model.eval()


def _input(question: Question, tokenizer: Any, model: Any) -> list[int]:
    if question["input"]:
        return question["input"]
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = tokenizer(TEXTS[0])["input_ids"] if tokenizer is not None else range(1, MOST + 1)
    return [int(token) % vocabulary for token in ids][:MOST]


def _run(model: Any, ids: list[int], **arguments: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **arguments)


def _logits(
    model: Any, ids: list[int], question: Question, found: dict[str, Any]
) -> dict[str, Any]:
    logits = (
        _run(model, ids, use_cache=False).logits[0].float().contiguous()
    )  # [tokens, vocabulary]
    watched = question["watched"] or _choose(logits)
    found["watched"] = watched
    values = [row[places].tolist() for row, places in zip(logits, watched, strict=True)]
    return {
        "digest": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
        "largest": logits.abs().max().item(),
        "values": values,
    }


def _choose(logits: Any) -> list[list[int]]:
    """Of each row the places of the largest values, and some that are spread over it."""
    vocabulary = logits.shape[-1]
    spread = set(range(0, vocabulary, max(1, vocabulary // SPREAD)))
    best = logits.topk(min(TOP, vocabulary)).indices.tolist()
    return [sorted(spread | set(row)) for row in best]


def _generate(model: Any, ids: list[int]) -> list[int]:
    import torch

    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=STEPS,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


def _cached(model: Any, ids: list[int]) -> float | None:
    """How far logits with a cache are from those without; None where the model has none."""
    whole = _run(model, ids, use_cache=False).logits[0]
    begin = max(1, len(ids) // 2)
    names = inspect.signature(model.forward).parameters
    name = next((each for each in CACHES if each in names), "")
    part = _run(model, ids[:begin], use_cache=True)
    worst = _apart(part.logits[0], whole[:begin])
    for place in range(begin, len(ids)):
        cache = getattr(part, name, None) if name else None
        if cache is None:
            return None
        part = _run(model, ids[place : place + 1], use_cache=True, **{name: cache})
        worst = max(worst, _apart(part.logits[0], whole[place : place + 1]))
    return worst


def _backends(model: Any, ids: list[int], question: Question) -> dict[str, float | str]:
    """Backend -> how far its logits are from the default one's, or why there are none."""
    whole = _run(model, ids, use_cache=False).logits[0]
    found: dict[str, float | str] = {}
    for backend in question["backends"]:
        try:
            other = _twin(model, backend, question["trust"])
        except (ImportError, ValueError) as error:  # how a model says that it has no such backend
            found[backend] = " ".join(str(error).split())[:500]
            continue
        found[backend] = _apart(_run(other, ids, use_cache=False).logits[0], whole)
    return found


def _twin(model: Any, backend: str, trust: bool) -> Any:
    """The model with another attention backend, and the same weights in memory."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(
            copy.deepcopy(model.config),
            dtype=model.dtype,
            attn_implementation=backend,
            trust_remote_code=trust,
        )
    theirs = dict(model.named_modules())
    for name, module in twin.named_modules():
        module._parameters.update(theirs[name]._parameters)
        module._buffers.update(theirs[name]._buffers)
    return twin.eval()


def _apart(ours: Any, theirs: Any) -> float:
    """The largest difference, as a fraction of the largest value; infinite if one is not finite."""
    worst = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()
    return float(worst) if math.isfinite(worst) else math.inf


def make_weights(question: Question) -> bool:
    """Writes weights into the folder that depend on names and shapes, not on the release."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, trust = Path(question["folder"]), question["trust"]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
    made = folder / "made"
    model.save_pretrained(made)
    for file in made.glob("*.safetensors*"):
        file.replace(folder / file.name)
    return True


if __name__ == "__main__":
    asked, told = map(Path, sys.argv[1:])
    told.write_text(json.dumps(answer(json.loads(asked.read_text("utf-8")))), "utf-8")
