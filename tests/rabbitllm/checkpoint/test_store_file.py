from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rabbitllm.checkpoint import store_file
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.store_file import is_sound, write_file
from rabbitllm.checkpoint.tensors import read_header

ENCODED = Lossless(lowest=1, outliers=0)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """One that the codec encodes, one that it cannot, and one that it is not asked for."""
    torch.manual_seed(0)
    any_bits = torch.randint(-(2**15), 2**15, (64, 64), dtype=torch.int16).view(torch.bfloat16)
    return {
        "usual": torch.randn(64, 64, dtype=torch.bfloat16),
        "odd": any_bits,
        "plain": torch.randn(64, 64),
    }


def test_weights_come_back_with_their_bits(
    tmp_path: Path, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "a.safetensors"
    write_file(file, dict(weights), {"usual": ENCODED, "odd": ENCODED})
    entries = read_header(file)
    codecs = {name: type(entry.codec) for name, entry in entries.items()}
    assert codecs == {"usual": Lossless, "odd": type(PLAIN), "plain": type(PLAIN)}
    for name, weight in weights.items():
        found = Reader(entries).read(name)
        assert found.dtype == weight.dtype
        assert torch.equal(found.view(torch.uint8), weight.view(torch.uint8))
    assert "odd is stored as it is: its values do not fit lossless" in caplog.text
    assert "usual" not in caplog.text


def test_a_file_without_a_checksum_is_not_sound(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "a.safetensors"
    write_file(file, dict(weights), {})
    assert is_sound(file)
    save_file(weights, file)
    assert not is_sound(file)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_file, "sync", full)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written: .*No space left"):
        write_file(tmp_path / "a.safetensors", weights, {})
    assert list(tmp_path.iterdir()) == []
