from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from harness.measuring.parity import compare
from harness.measuring.references.published import Published
from tests.harness.measuring.references.published_cases import CASES, UNSAID

IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))
PADDING = 7
TOLERANCE = 2e-5
"""Of the largest logit, for two orders of summation in float32."""
ABSENT = object()
MOVED = 1e-3
"""Of the largest logit: what is no rounding."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The folders of the checkpoints that were made, by their cases."""
    return {}


@pytest.fixture
def folder(name, made, tmp_path_factory) -> Path:
    """The case's checkpoint; no norm, bias or router is neutral."""
    if name not in made:
        case = CASES[name]
        model_class = getattr(transformers, case.model_class)
        model = model_class(model_class.config_class(**case.config))
        generator = torch.Generator().manual_seed(1)
        for _, tensor in sorted(model.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            matrix = tensor.dim() > 1
            tensor.copy_(1.5 * noise / tensor.shape[-1] ** 0.5 if matrix else tensor + 0.2 * noise)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made[name]


def stock(folder: Path, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: torch.Tensor = model(ids, use_cache=False, **inputs).logits
    return logits


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(compare(ours, theirs)["relative"])


def changed(folder: Path, to: Path, field: str, value: Any) -> Path:
    """A copy of a checkpoint with another value in its config.json, or, with `ABSENT`, none."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    *outer, last = field.split(".")
    inner = config
    for name in outer:
        inner = inner[name]
    inner[last] = value
    if value is ABSENT:
        del inner[last]
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("name", CASES)
def test_logits_are_stocks(folder):
    assert difference(Published(folder)(IDS), stock(folder, IDS)) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_a_padded_text_has_the_logits_of_the_text_alone(folder):
    padded, mask = IDS.clone(), torch.ones_like(IDS)
    padded[0, :PADDING], mask[0, :PADDING] = 0, 0
    reference = Published(folder)
    logits = reference(padded, mask)
    assert difference(logits[:1, PADDING:], reference(IDS[:1, PADDING:])) <= TOLERANCE
    assert difference(logits[1:], reference(IDS[1:])) <= TOLERANCE
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    theirs = stock(folder, padded, attention_mask=mask, position_ids=places)
    assert difference(logits[mask == 1], theirs[mask == 1]) <= TOLERANCE


def fields(which: str) -> list[tuple[str, str]]:
    """The cases' names, each with the fields that it has in `changes` or `departures`."""
    return [(name, field) for name, case in CASES.items() for field in getattr(case, which)]


@pytest.mark.parametrize(("name", "field"), fields("changes"))
def test_a_field_moves_the_logits_where_it_moves_stocks(name, field, folder, tmp_path):
    other = changed(folder, tmp_path / "changed", field, CASES[name].changes[field])
    logits = Published(other)(IDS)
    assert difference(logits, Published(folder)(IDS)) >= MOVED
    assert difference(logits, stock(other, IDS)) <= TOLERANCE


@pytest.mark.parametrize(("name", "field"), fields("departures"))
def test_stock_departs_from_what_is_published(name, field, folder, tmp_path):
    other = changed(folder, tmp_path / "changed", field, CASES[name].departures[field])
    logits = Published(other)(IDS)
    assert difference(logits, Published(folder)(IDS)) >= MOVED
    assert difference(logits, stock(other, IDS)) >= MOVED


@pytest.mark.parametrize("name", CASES)
def test_rope_is_read_from_a_published_config_too(folder, tmp_path):
    logits = Published(folder)(IDS)
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    scaling = text.pop("rope_parameters")
    if "full_attention" in scaling:
        text["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
        scaling = scaling["full_attention"]
    text["rope_theta"] = scaling.pop("rope_theta")
    text["rope_scaling"] = scaling | {"type": scaling.pop("rope_type")}
    published = tmp_path / "published"
    shutil.copytree(folder, published)
    (published / "config.json").write_text(json.dumps(config))
    assert torch.equal(Published(published)(IDS), logits)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in UNSAID.items() for field in fields]
)
def test_a_published_config_may_leave_a_field_out(name, field, folder, tmp_path):
    stated = changed(folder, tmp_path / "stated", field, UNSAID[name][field])
    unsaid = changed(folder, tmp_path / "unsaid", field, ABSENT)
    assert torch.equal(Published(unsaid)(IDS), Published(stated)(IDS))


@pytest.mark.parametrize("name", ["llama-scaled"])
def test_a_tied_head_is_the_embedding_whatever_else_is_stored(folder, tmp_path):
    stored = tmp_path / "stored"
    shutil.copytree(folder, stored)
    save_file({"lm_head.weight": torch.ones(96, 48)}, stored / "model-2.safetensors")
    assert torch.equal(Published(stored)(IDS), Published(folder)(IDS))


def test_an_unknown_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(KeyError, match="mamba"):
        Published(tmp_path)
