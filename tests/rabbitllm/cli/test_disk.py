"""`split` and `cache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rabbitllm import StreamedModel
from rabbitllm.checkpoint.inventory import find_stores

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "stores"


@pytest.fixture
def name(command: Command, checkpoint: Callable[..., Path], root: Path) -> str:
    """A store's name, which a first split has filled."""
    status, out, _ = command("split", checkpoint("mixtral"), "--store", root, "--dtype", "bfloat16")
    assert status == 0
    (store,) = find_stores(root)
    assert f"is split in {store.folder} (5 files, " in out
    return store.folder.name


def test_split_goes_on_where_it_stopped(
    command: Command, checkpoint: Callable[..., Path], root: Path, name: str
) -> None:
    files = sorted((root / name).glob("*.safetensors"))
    before = {file.name: file.stat().st_ino for file in files}
    files[0].unlink()
    assert "incomplete" in command("cache", "ls", "--store", root)[1]
    command("split", checkpoint("mixtral"), "--store", root, "--dtype", "bfloat16")
    after = {file.name: file.stat().st_ino for file in (root / name).glob("*.safetensors")}
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} <= {files[0].name}


def test_split_says_when_there_is_nothing_to_do(
    command: Command, checkpoint: Callable[..., Path], root: Path
) -> None:
    status, out, _ = command("split", checkpoint(), "--store", root)
    assert status == 0
    assert out.startswith(f"{checkpoint()} is read in place from {checkpoint()} (")
    assert not root.exists()


@pytest.mark.parametrize("options", [(), ("--delete-original",)])
def test_experts_that_can_be_read_one_by_one_are_put_together(
    command: Command, copied: Callable[..., Path], root: Path, options: tuple[str, ...]
) -> None:
    folder = copied("mixtral")
    status, out, _ = command("split", folder, "--store", root, *options)
    assert status == 0
    (store,) = find_stores(root)
    assert out.startswith(f"{folder} is split in {store.folder} (5 files, ")
    assert store.complete
    assert bool(list(folder.glob("*.safetensors"))) != bool(options)
    again = command("split", folder, "--store", root)[1]
    assert ("nothing to split" in again) == bool(options)


def test_a_quantised_mixture_is_not_split_into_what_is_decoded(
    command: Command, copied: Callable[..., Path], configure: Callable[..., None], root: Path
) -> None:
    folder = copied("mixtral")
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith("q_proj.weight")]:
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config={"quant_method": "fp8"})
    status, out, _ = command("split", folder, "--store", root)
    assert status == 0
    assert "nothing to split" in out
    assert not root.exists()


def test_split_to_another_dtype(
    command: Command, checkpoint: Callable[..., Path], root: Path
) -> None:
    command("split", checkpoint(), "--store", root, "--dtype", "bfloat16")
    (store,) = find_stores(root)
    assert store.dtypes == ("bfloat16",)


def test_ls_shows_every_store(
    command: Command, checkpoint: Callable[..., Path], root: Path, name: str
) -> None:
    status, out, _ = command("cache", "ls", "--store", root)
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert status == 0
    assert "bfloat16" in row
    assert " complete " in row
    assert row.endswith(str(checkpoint("mixtral")))
    assert out.endswith(f" in {root}\n")


def test_ls_of_nothing(command: Command, root: Path) -> None:
    assert command("cache", "ls", "--store", root) == (0, f"No layer stores in {root}.\n", "")


def test_the_environment_names_the_folder(
    command: Command, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITLLM_CACHE", str(root))
    assert name in command("cache", "ls")[1]


def test_check_finds_damage_and_says_the_way_out(
    command: Command, checkpoint: Callable[..., Path], root: Path, name: str
) -> None:
    status, out, _ = command("cache", "check", "--store", root)
    assert (status, out) == (0, f"No damage in the layer stores in {root} (1 read).\n")
    file = root / name / "model.layers.1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    expected = f"{file} is damaged: delete it, and the next load or split makes it again.\n"
    for names in ((), (name,)):
        assert command("cache", "check", *names, "--store", root)[:2] == (1, expected)
    file.unlink()
    command("split", checkpoint("mixtral"), "--store", root, "--dtype", "bfloat16")
    assert command("cache", "check", name, "--store", root)[0] == 0
    status, _, err = command("cache", "check", "absent", "--store", root)
    assert status == 2
    assert f"No layer store absent in {root}" in err


def test_check_of_a_models_only_weights_says_to_download_it_again(
    command: Command,
    copied: Callable[..., Path],
    root: Path,
    streamed: Callable[..., StreamedModel],
) -> None:
    folder = copied("mixtral")
    streamed(folder, layer_shards_saving_path=root, delete_original=True)
    file = sorted(root.glob("*/*.safetensors"))[0]
    file.write_bytes(b"")
    status, out, _ = command("cache", "check", "--store", root)
    assert status == 1
    assert f"{file} is damaged: download {folder} again" in out


@pytest.mark.parametrize("by_name", [True, False])
def test_rm(command: Command, root: Path, name: str, by_name: bool) -> None:
    status, _, err = command("cache", "rm", name if by_name else "--all", "--store", root)
    assert status == 0
    assert err.startswith(f"Removed {name} (")
    assert find_stores(root) == []


@pytest.mark.parametrize("wrong", ["nothing", "..", "/", ""])
def test_rm_of_a_wrong_name_removes_nothing(
    command: Command, root: Path, name: str, wrong: str
) -> None:
    status, _, err = command("cache", "rm", name, wrong, "--store", root)
    assert status == 2
    assert f"No layer store {wrong} in {root}" in err
    assert len(find_stores(root)) == 1


def test_rm_of_nothing_is_misuse(command: Command, root: Path, name: str) -> None:
    assert command("cache", "rm", "--store", root)[0] == 2
    assert len(find_stores(root)) == 1


def test_a_models_only_weights_are_removed_by_force_alone(
    command: Command,
    copied: Callable[..., Path],
    root: Path,
    streamed: Callable[..., StreamedModel],
) -> None:
    folder = copied("mixtral")
    command("split", folder, "--store", root, "--delete-original")
    assert not list(folder.glob("*.safetensors"))
    assert "(deleted: only copy)" in command("cache", "ls", "--store", root)[1]
    status, _, err = command("cache", "rm", "--all", "--store", root)
    assert status == 2
    assert "--force" in err
    streamed(folder)
    assert command("cache", "rm", "--all", "--force", "--store", root)[0] == 0
    assert find_stores(root) == []
