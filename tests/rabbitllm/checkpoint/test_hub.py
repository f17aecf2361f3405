"""Fetching from a hub: a stand-in for it on the loopback interface serves a tiny repository."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.formats.write import write_format
from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint.headers import fetch_headers
from rabbitllm.checkpoint.hub import Download, resolve
from rabbitllm.checkpoint.index import Asked, read_index
from rabbitllm.checkpoint.moved import MOVED
from rabbitllm.checkpoint.tensors import MAX_HEADER_BYTES
from rabbitllm.cli import main
from tests.patience import PATIENCE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXTRAS = (
    "pytorch_model.bin",
    "consolidated.safetensors",
    "onnx/model.onnx",
    "modeling_custom.py",
    "README.md",
    ".gitattributes",
)
"""What repositories hold besides, and nobody needs."""
LONG = 2**27
"""Bytes; more than lies between two sockets."""


class Hub:
    """Repositories by id, who may read them, and what was asked.

    Attributes:
        repos: id -> folder.
        gated: ids that need the token "let-me-in".
        expired: tokens that are refused.
        cut: names of files whose connection breaks half way.
        silent: names of files that are asked for in vain.
        long: names of files that `LONG` bytes follow, ranges or not.
        left: set when somebody goes before all is sent.
        ranges: it sends the part of a file that is asked for, and no more.
        failing: name of a file -> the HTTP status it gets.
        tokens: of all requests.
        fetched: names of the files whose contents were asked for.
        revisions: branches, tags and commits that were asked for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.expired: set[str] = set()
        self.cut: set[str] = set()
        self.silent: set[str] = set()
        self.long: set[str] = set()
        self.left = threading.Event()
        self.ranges = False
        self.failing: dict[str, int] = {}
        self.tokens: list[str | None] = []
        self.fetched: list[str] = []
        self.revisions: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    hub.left.set()

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self, with_body: bool) -> None:
                token = self.headers.get("Authorization")
                token = token.removeprefix("Bearer ") if token else None
                hub.tokens.append(token)
                status, headers, body = hub.answer(self.path.split("?")[0], token, with_body)
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if hub.ranges and status == 200 and asked and with_body:
                    status, body = 206, body[int(asked[1]) : int(asked[2]) + 1]
                file = Path(self.path).name
                if file in hub.silent:
                    self.rfile.read(1)  # until the other side hangs up
                    self.close_connection = True
                    return
                length = len(body) + (LONG if file in hub.long else 0)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(length)}).items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    cut = file in hub.cut
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                    self.close_connection |= cut
                    for _ in range(len(body), length, 2**20):
                        self.wfile.write(bytes(2**20))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(
        self, path: str, token: str | None, with_body: bool
    ) -> tuple[int, dict[str, str], bytes]:
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/" if api else "/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if status := self.failing.get(rest[-1] if rest else ""):
            return status, {}, b""
        if token in self.expired:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if repo not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = {
            str(file.relative_to(self.repos[repo])): file
            for file in sorted(self.repos[repo].rglob("*"))
            if file.is_file()
        }
        if api and rest[0] == "tree":
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": _digest(f)}
                for n, f in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if api and rest[0] == "revision":
            self.revisions.add(rest[1])
            if rest[1] not in ("main", "v1"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api:
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if repo in self.gated and token != "let-me-in":
            return 403 if token else 401, {"X-Error-Code": "GatedRepo"}, b""
        name = "/".join(rest[2:])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        if with_body:
            self.fetched.append(name)
        headers = {"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": COMMIT}
        return 200, headers, files[name].read_bytes()


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[..., Path]
) -> Iterator[Hub]:
    """A hub with `tiny/llama` (one file) and `tiny/shards`, and an empty cache."""
    hub = Hub()
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants + "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.repos["tiny/llama"] = Path(shutil.copytree(checkpoint(), tmp_path / "llama"))
    hub.repos["tiny/shards"] = tmp_path / "shards"
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    for repo in hub.repos.values():
        for name in ("merges.txt", "tokenizer.model", "chat_template.jinja", *EXTRAS):
            (repo / name).parent.mkdir(exist_ok=True)
            (repo / name).write_text(f"the text of {name}")  # equal files would be fetched once
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def _wanted(folder: Path) -> set[str]:
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return names - set(EXTRAS)


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "a/b/c", "../x"]
)
def test_what_can_only_be_a_folder_is_not_sought_on_the_hub(model: str) -> None:
    with pytest.raises(CheckpointError, match="No such folder"):
        resolve(model, None, False)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve(tmp_path, None, False) == tmp_path
    assert resolve(str(tmp_path), None, False) == tmp_path


@pytest.mark.parametrize("repo", ["tiny/llama", "tiny/shards"])
def test_only_what_is_needed_is_fetched_and_once(hub: Hub, repo: str) -> None:
    folder = resolve(repo, None, False)
    wanted = _wanted(hub.repos[repo])
    assert {"config.json", "merges.txt", "tokenizer.model", "chat_template.jinja"} < wanted
    assert sorted(hub.fetched) == sorted(wanted)
    assert _wanted(folder) == wanted
    assert read_index(folder).keys() == read_index(hub.repos["tiny/llama"]).keys()
    hub.fetched.clear()
    assert resolve(repo, None, False) == folder
    assert hub.fetched == []


def test_code_is_fetched_where_it_is_trusted(hub: Hub) -> None:
    resolve("tiny/llama", None, True)
    assert set(hub.fetched) == _wanted(hub.repos["tiny/llama"]) | {"modeling_custom.py"}


def test_a_revision_goes_to_the_given_cache_and_comes_again_only_by_force(
    hub: Hub, tmp_path: Path, streamed: Callable[..., StreamedModel]
) -> None:
    options: dict[str, Any] = {"revision": "v1", "cache_dir": tmp_path / "elsewhere"}
    model = streamed("tiny/llama", **options)
    assert hub.revisions == {"v1"}
    assert tmp_path / "elsewhere" in model.checkpoint_folder.parents
    assert not (tmp_path / "cache").exists()
    hub.fetched.clear()
    streamed("tiny/llama", **options)
    assert hub.fetched == []
    streamed("tiny/llama", **options, force_download=True)
    assert set(hub.fetched) == _wanted(hub.repos["tiny/llama"])
    hub.tokens.clear()
    streamed("tiny/llama", **options, local_files_only=True)
    assert hub.tokens == []


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"tiny/llama has no revision 'v2'\. .*/commits"):
        resolve("tiny/llama", None, False, Download(revision="v2"))


def test_what_is_not_in_the_cache_is_not_fetched_for_local_files_only(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"is not, or not whole.*local_files_only"):
        resolve("tiny/llama", None, False, Download(local_files_only=True))
    assert hub.tokens == []


def test_of_a_subfolder_nothing_else_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.repos["tiny/nested"] = tmp_path / "nested"
    shutil.copytree(hub.repos["tiny/llama"], tmp_path / "nested" / "inside" / "small")
    shutil.copytree(hub.repos["tiny/llama"], tmp_path / "nested", dirs_exist_ok=True)
    (tmp_path / "nested" / "inside" / "small" / MOVED).write_text(json.dumps({"store": "/"}))
    folder = resolve("tiny/nested", None, False, subfolder="inside/small")
    assert set(hub.fetched) == {f"inside/small/{name}" for name in _wanted(hub.repos["tiny/llama"])}
    assert _wanted(folder) == _wanted(hub.repos["tiny/llama"])


def test_a_config_of_a_repository_brings_no_weights(
    hub: Hub, streamed: Callable[..., StreamedModel], prompt: Any
) -> None:
    folder = hub.repos["tiny/llama"]
    model = streamed(folder, config="tiny/shards")
    assert not any(name.endswith(".safetensors") for name in hub.fetched)
    assert model(prompt).logits.equal(streamed(folder)(prompt).logits)


def test_a_repository_loads_as_its_folder_does(
    hub: Hub, streamed: Callable[..., StreamedModel], prompt: Any
) -> None:
    model = streamed("tiny/shards")
    assert model.name_or_path == "tiny/shards"
    assert model(prompt).logits.equal(streamed(hub.repos["tiny/llama"])(prompt).logits)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_an_adapter_of_a_repository_loads_with_its_model(
    hub: Hub, streamed: Callable[..., StreamedModel], prompt: Any, tmp_path: Path, beside: bool
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(hub.repos["tiny/llama"]), config
    )
    adapted.peft_config["default"].base_model_name_or_path = "tiny/shards"
    repo = "tiny/llama" if beside else "tiny/lora"
    hub.repos[repo] = hub.repos["tiny/llama"] if beside else tmp_path / "lora"
    adapted.save_pretrained(hub.repos[repo])
    model = streamed(repo)
    torch.testing.assert_close(model(prompt).logits, adapted.eval()(prompt).logits)
    assert any("shards" in str(path) for path in [model.checkpoint_folder]) != beside
    if not beside:
        with pytest.raises(CheckpointError, match=r"is an adapter \(LoRA\) for tiny/shards"):
            fetch_headers(repo, None, False, _empty(tmp_path / "hollow"))


@pytest.mark.parametrize("argument", ["token", "hf_token"])
def test_the_token_is_sent(hub: Hub, streamed: Callable[..., StreamedModel], argument: str) -> None:
    hub.gated.add("tiny/llama")
    assert streamed("tiny/llama", **{argument: "let-me-in"}).streaming_plan.slots == 2
    assert set(hub.tokens) == {"let-me-in"}


def test_the_token_of_the_environment_is_sent_unless_one_is_given(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "from-outside")
    resolve("tiny/llama", None, False)
    assert set(hub.tokens) == {"from-outside"}
    hub.tokens.clear()
    resolve("tiny/llama", "let-me-in", False)
    assert set(hub.tokens) == {"let-me-in"}


def test_no_token_is_sent_where_none_is_wanted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from-outside")
    resolve("tiny/llama", False, False)
    assert set(hub.tokens) == {None}


@pytest.mark.parametrize("token", [None, "a-stranger's"])
def test_a_gated_repository_says_whose_terms_to_accept(hub: Hub, token: str | None) -> None:
    hub.gated.add("tiny/llama")
    with pytest.raises(CheckpointError, match=r"tiny/llama is gated.*token=.*HF_TOKEN"):
        resolve("tiny/llama", token, False)


@pytest.mark.parametrize("repo", ["tiny/lama", "no-such-model", "not a name", "-tiny/llama"])
def test_an_unknown_repository_is_named(hub: Hub, repo: str) -> None:
    with pytest.raises(CheckpointError, match=f"No folder and no hub repository named '{repo}'"):
        resolve(repo, None, False)


def test_a_refused_token_is_said_to_be_one(hub: Hub) -> None:
    hub.expired.add("of-last-year")
    with pytest.raises(CheckpointError, match=r"refuses tiny/llama.*expired token"):
        resolve("tiny/llama", "of-last-year", False)


def test_of_a_repository_of_pickles_those_are_fetched(
    hub: Hub, tmp_path: Path, stock: Callable[..., Any], streamed: Callable[..., StreamedModel]
) -> None:
    repo = hub.repos["tiny/llama"]
    weights = stock(repo).state_dict()
    (repo / "model.safetensors").unlink()
    torch.save(weights, repo / "pytorch_model.bin")
    folder = resolve("tiny/llama", None, False)
    assert read_index(folder).keys() == weights.keys()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors .*`hf download tiny/llama`"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


def test_a_single_file_beside_an_index_is_fetched_alone(hub: Hub) -> None:
    repo = hub.repos["tiny/shards"]
    shutil.copy(hub.repos["tiny/llama"] / "model.safetensors", repo)
    folder = resolve("tiny/shards", None, False)
    assert {entry.file.name for entry in read_index(folder).values()} == {"model.safetensors"}
    assert not any(name.startswith("model-") for name in hub.fetched)


def test_a_variant_is_fetched_alone(hub: Hub) -> None:
    repo = hub.repos["tiny/llama"]
    shutil.copy(repo / "model.safetensors", repo / "model.fp16.safetensors")
    asked = Asked(variant="fp16")
    folder = resolve("tiny/llama", None, False, asked=asked)
    assert {entry.file.name for entry in read_index(folder, asked).values()} == {
        "model.fp16.safetensors"
    }
    assert "model.safetensors" not in hub.fetched


def test_a_shard_that_the_hub_lacks_is_named(hub: Hub) -> None:
    lost = sorted(hub.repos["tiny/shards"].glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"Shard {lost.name} .* is missing"):
        read_index(resolve("tiny/shards", None, False))


def test_an_index_that_names_other_places_fetches_nothing_there(hub: Hub) -> None:
    index = hub.repos["tiny/shards"] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../llama/pytorch_model.bin"}}))
    with pytest.raises(CheckpointError, match="no safetensors file of that folder"):
        resolve("tiny/shards", None, False)
    assert not any(name.endswith((".safetensors", ".bin")) for name in hub.fetched)


def test_a_repository_cannot_say_that_its_weights_lie_elsewhere(hub: Hub, tmp_path: Path) -> None:
    (hub.repos["tiny/llama"] / MOVED).write_text(json.dumps({"store": str(tmp_path)}))
    folder = resolve("tiny/llama", None, False)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / MOVED).exists()


def test_a_snapshot_in_the_cache_needs_no_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "cache" / "models--tiny--llama"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = shutil.copytree(hub.repos["tiny/llama"], repo / "snapshots" / COMMIT)
    assert resolve("tiny/llama", None, False) == snapshot
    assert hub.tokens == []


def test_a_fetched_repository_survives_the_hub(hub: Hub) -> None:
    folder = resolve("tiny/llama", None, False)
    hub.server.shutdown()
    hub.server.server_close()
    assert resolve("tiny/llama", None, False) == folder


@pytest.mark.parametrize("reachable", [True, False])
def test_without_hub_and_cache_the_error_says_so(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    if reachable:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        hub.server.shutdown()
        hub.server.server_close()
    message = "tiny/llama is not, or not whole, in the local cache.*HF_HUB_OFFLINE"
    with pytest.raises(CheckpointError, match=message):
        resolve("tiny/llama", None, False)


def test_an_incomplete_snapshot_says_so_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = sorted(resolve("tiny/shards", None, False).glob("*.safetensors"))[1]
    lost.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = "tiny/shards is not, or not whole, in the local cache.* offline mode"
    with pytest.raises(CheckpointError, match=message):
        read_index(resolve("tiny/shards", None, False))
    with pytest.raises(CheckpointError, match=message):
        fetch_headers("tiny/shards", None, False, _empty(tmp_path / "hollow"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_the_hub_forbids_says_why(hub: Hub, name: str) -> None:
    hub.failing[name] = 403
    with pytest.raises(CheckpointError, match=r"tiny/llama is not, or not whole.*403 Forbidden"):
        resolve("tiny/llama", None, False)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_connection_that_breaks_is_an_error_and_is_gone_on_from(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's, between its own attempts
    hub.cut.add(name)
    with pytest.raises(CheckpointError, match=r"broke while tiny/llama was fetched: .*again"):
        resolve("tiny/llama", None, False)
    hub.cut.clear()
    hub.fetched.clear()
    folder = resolve("tiny/llama", None, False)
    assert name in hub.fetched
    assert read_index(folder).keys() == read_index(hub.repos["tiny/llama"]).keys()


# headers alone


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("repo", ["tiny/llama", "tiny/shards"])
def test_headers_make_a_hollow_copy_that_takes_no_space(
    hub: Hub, tmp_path: Path, repo: str
) -> None:
    hollow = _empty(tmp_path / "hollow")
    fetch_headers(repo, None, False, hollow)
    expected = read_index(hub.repos[repo])
    found = read_index(hollow)
    assert found.keys() == expected.keys()
    for key, entry in expected.items():
        assert (found[key].dtype, found[key].shape) == (entry.dtype, entry.shape)
        assert (found[key].file.name, found[key].nbytes) == (entry.file.name, entry.nbytes)
    assert sum(file.stat().st_blocks for file in hollow.glob("*.safetensors")) * 512 < 50_000
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_no_more_than_a_header_is_taken_from_a_hub_that_sends_all(hub: Hub, tmp_path: Path) -> None:
    hub.long.add("model.safetensors")
    hollow = _empty(tmp_path / "hollow")
    fetch_headers("tiny/llama", None, False, hollow)
    assert hub.left.wait(PATIENCE)
    assert read_index(hollow).keys() == read_index(hub.repos["tiny/llama"]).keys()


def test_a_hub_that_does_not_answer_is_not_waited_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.silent.add("model.safetensors")
    with pytest.raises(CheckpointError, match=r"broke while tiny/llama was fetched: ReadTimeout"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


@pytest.mark.parametrize("length", [0, 1, 25, MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_a_header_whose_length_cannot_be_is_refused_before_it_is_planned(
    hub: Hub, tmp_path: Path, length: int
) -> None:
    file = hub.repos["tiny/llama"] / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + bytes(24))
    hub.long |= {file.name} if length > MAX_HEADER_BYTES else set()
    with pytest.raises(CheckpointError, match=r"tensors of tiny/llama is not in the safetensors"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


@pytest.mark.parametrize("status", [403, 500])
def test_a_header_that_the_hub_refuses_says_so(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.failing["model.safetensors"] = status
    with pytest.raises(CheckpointError, match=rf"The hub refuses tiny/llama: .*{status}"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


def test_headers_of_what_is_in_the_cache_are_there_already(hub: Hub, tmp_path: Path) -> None:
    resolve("tiny/shards", None, False)
    hub.fetched.clear()
    fetch_headers("tiny/shards", None, False, _empty(tmp_path / "hollow"))
    assert hub.fetched == []


def test_a_repository_without_safetensors_is_named_before_it_is_planned(
    hub: Hub, tmp_path: Path
) -> None:
    (hub.repos["tiny/llama"] / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=r"tensors of tiny/llama is not in the safetensors"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "a"))
    (hub.repos["tiny/llama"] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tiny/llama has no model\.safetensors"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "b"))
    with pytest.raises(CheckpointError, match="No folder and no hub repository"):
        fetch_headers("tiny/lama", None, False, _empty(tmp_path / "c"))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": ["a", "b"]},
        {"data_offsets": []},
        {"data_offsets": 3},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [0, 2**70]},
        {"shape": "x"},
        None,
    ],
    ids=repr,
)
def test_a_malformed_header_is_refused_before_it_is_planned(
    hub: Hub, tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"w": changes and entry | changes}).encode()
    file = hub.repos["tiny/llama"] / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    with pytest.raises(CheckpointError, match=r"tensors of tiny/llama is not in the safetensors"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


def test_a_header_of_an_unknown_type_says_so_before_it_is_planned(hub: Hub, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F31", "shape": [6], "data_offsets": [0, 24]}}).encode()
    file = hub.repos["tiny/llama"] / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    with pytest.raises(CheckpointError, match="no dtype 'F31' is known"):
        fetch_headers("tiny/llama", None, False, _empty(tmp_path / "hollow"))


def test_weights_that_were_deleted_on_purpose_are_not_fetched_again(
    hub: Hub,
    streamed: Callable[..., StreamedModel],
    checkpoint: Callable[..., Path],
    prompt: Any,
    tmp_path: Path,
) -> None:
    hub.repos["tiny/moe"] = checkpoint("mixtral")
    expected = streamed("tiny/moe", delete_original=True)(prompt).logits
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.fetched.clear()
    assert streamed("tiny/moe", delete_original=True)(prompt).logits.equal(expected)
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    fetch_headers("tiny/moe", None, False, _empty(tmp_path / "hollow"))
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    assert main(["plan", "tiny/moe", "--no-measure", "--device=cpu"]) == 0


def test_a_plan_is_the_folders_and_fetches_no_weights(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--no-measure", "--device", "cpu", "--host-memory", "min"]
    printed = []
    for model in ("tiny/shards", str(hub.repos["tiny/shards"])):
        assert main(["plan", model, *options]) == 0
        printed.append(capsys.readouterr().out.split("\n\n"))
    assert printed[0][1] == printed[1][1]
    assert " to fetch, in " in printed[0][0]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.fixture
def quantised(hub: Hub, tmp_path: Path) -> Callable[[str], Path]:
    """`quantised(format)` -> the folder of the hub's `tiny/quantised`, in shards."""

    def make(name: str) -> Path:
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        config = LlamaConfig(vocab_size=300, num_attention_heads=4, dtype="bfloat16", **sizes)
        model = LlamaForCausalLM(config).bfloat16()
        model.save_pretrained(tmp_path / "plain", max_shard_size="1MB")
        hub.ranges = True
        folder = write_format(tmp_path / "plain", tmp_path / name, name, "cpu")
        hub.repos["tiny/quantised"] = folder
        return folder

    return make


def _by_importance(folder: Path) -> None:
    """Puts the groups of columns in another order, as GPTQ's desc_act does."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for key in tensors:
            if key.endswith(".g_idx"):
                tensors[key] = tensors[key].flip(0).contiguous()
        save_file(tensors, file)


def _of_many_widths(folder: Path) -> None:
    """Has the config name two widths of codes, so that the shapes beside them count."""
    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = groups["group_0"] | {"weights": {"num_bits": 8}}
    (folder / "config.json").write_text(json.dumps(config))


TELLING: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gptq, act-order": ("gptq", _by_importance),
    "int4 beside int8": ("int4", _of_many_widths),
    "nf4": ("nf4", lambda folder: None),
    "fp8": ("fp8", lambda folder: None),
}


@pytest.mark.parametrize("case", TELLING)
def test_a_plan_of_a_quantised_repository_is_the_folders(
    hub: Hub,
    tmp_path: Path,
    quantised: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    name, change = TELLING[case]
    folder = quantised(name)
    change(folder)
    options = ["--no-measure", "--device", "cpu", "--host-memory", "min"]
    printed = []
    for model in ("tiny/quantised", str(folder)):
        assert main(["plan", model, *options]) == 0
        printed.append(capsys.readouterr().out.split("\n\n"))
    assert printed[0][1] == printed[1][1]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hollow = _empty(tmp_path / "hollow")
    fetch_headers("tiny/quantised", None, False, hollow)
    for file in folder.glob("*.safetensors"):
        here, there = load_file(hollow / file.name), load_file(file)
        for key in there:
            told = key.endswith((".g_idx", ".weight_shape", "bitsandbytes__nf4"))
            assert not told or here[key].equal(there[key])
    taken = sum(file.stat().st_blocks for file in hollow.glob("*.safetensors")) * 512
    assert taken < 0.3 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_hub_without_ranges_is_no_place_to_plan_a_quantised_repository(
    hub: Hub, tmp_path: Path, quantised: Callable[[str], Path]
) -> None:
    quantised("nf4")
    hub.ranges = False
    with pytest.raises(CheckpointError, match=r"in parts, .* `hf download tiny/quantised`"):
        fetch_headers("tiny/quantised", None, False, _empty(tmp_path / "hollow"))


def test_what_is_too_large_to_tell_anything_is_not_fetched(
    hub: Hub,
    tmp_path: Path,
    quantised: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantised("gptq")
    monkeypatch.setattr("rabbitllm.checkpoint.headers.MOST_TELLING", 256 * 4)
    fetch_headers("tiny/quantised", None, False, _empty(tmp_path / "hollow"))
    found = read_index(tmp_path / "hollow")
    wide = {
        int(load_file(entry.file)[key].max()) > 0
        for key, entry in found.items()
        if key.endswith("down_proj.g_idx")
    }
    assert wide == {False}
