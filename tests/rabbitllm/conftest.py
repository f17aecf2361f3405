"""Tiny checkpoints of real architectures, and what every test of the engine relies on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness.measuring.weights import load_weights, save_weights, weight_files
from rabbitllm import AutoModel, StreamedModel

GEOMETRY: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "tie_word_embeddings": False},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 32,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "phi": {},
}


def make(model_type: str, dtype: torch.dtype = torch.float32, **fields: Any) -> PreTrainedModel:
    """A stock model of this type at a tiny geometry, with seeded random weights."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**(GEOMETRY | fields))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for tensor in model.state_dict().values():  # zeros and ones would hide a misplaced weight
        torch.nn.init.normal_(tensor, std=0.1)
    return model.eval()


@pytest.fixture(autouse=True)
def _alone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """One thread, a store of its own, and no hub."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("RABBITLLM_CACHE", str(tmp_path_factory.getbasetemp() / "stores"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """`build(model_type, dtype, field=value)` -> a stock model, see `make`."""
    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(architecture, dtype)` -> a folder that all tests share: do not write there."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def folder(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        if (architecture, dtype) not in made:
            fields = dict(ARCHITECTURES[architecture])
            model = make(fields.pop("model_type", architecture), dtype, **fields)
            name = f"{architecture}-{str(dtype).removeprefix('torch.')}"
            made[architecture, dtype] = tmp_path_factory.mktemp(name, numbered=False)
            model.save_pretrained(made[architecture, dtype])
        return made[architecture, dtype]

    return folder


@pytest.fixture
def composite(tmp_path: Path) -> Path:
    """A folder with a model of text and pictures, written whole, as such are published."""
    text = GEOMETRY | {
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "attention_chunk_size": 8,
        "head_dim": 16,
    }
    pictures = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 64,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
    }
    torch.manual_seed(0)
    config = CONFIG_MAPPING["llama4"](text_config=text, vision_config=pictures)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for tensor in model.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(tmp_path / "composite")
    return tmp_path / "composite"


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests share, of a model with a byte-level tokenizer and a chat template.

    It answers with small letters, never ends by itself, and a long answer fits into its context.
    """
    special = ["<pad>", "<s>", "</s>"]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    folder = tmp_path_factory.mktemp("talker", numbered=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        chat_template="{% for message in messages %}<{{ message.role }}>{{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    ).save_pretrained(folder)
    model = make(
        "llama",
        vocab_size=len(names),
        tie_word_embeddings=False,
        max_position_embeddings=20_000,
    )
    others = [i for i, name in enumerate(names) if name not in ascii_lowercase]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4  # what it says depends on all that was said
        model.get_output_embeddings().weight[others] = 0  # below the best letter's logit
    model.save_pretrained(folder)
    return folder


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
REPORT = "It rains in Paris."


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests share, of a model that calls a tool, and says what it told.

    Whatever the question, it calls `weather`; behind a tool's message it gives a report.
    """
    ask, told = "<ask>", "<told>"
    special = ["<pad>", "</s>", ask, told]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([CALL, REPORT])
    folder = tmp_path_factory.mktemp("caller", numbered=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        chat_template="{% if tools %}{{ tools | tojson }} call by <tool_call>{% endif %}"
        "{% for message in messages %}[{{ message.role }}]{{ message.content or '' }}"
        "{{ (message.tool_calls or []) | tojson }}{% endfor %}"
        "{% if messages[-1].role == 'tool' %}<told>{% else %}<ask>{% endif %}",
    ).save_pretrained(folder)
    ids = {name: tokenizer.token_to_id(name) for name in (ask, told, CALL, REPORT, "</s>")}
    model = make(
        "llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=320,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=ids["</s>"],
    )
    followers = torch.full((len(model.get_input_embeddings().weight),), ids["</s>"])
    followers[ids[ask]], followers[ids[told]] = ids[CALL], ids[REPORT]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1 if "norm" in name else 0)  # layers add nothing
        model.get_input_embeddings().weight.copy_(torch.eye(len(followers), 320))
        model.get_output_embeddings().weight[followers, torch.arange(len(followers))] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied_talker(talker: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to spoil."""
    return Path(shutil.copytree(talker, tmp_path / "talker"))


@pytest.fixture
def copied(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`copied(architecture, dtype)` -> a copy of such a folder, to spoil."""

    def folder(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        return Path(shutil.copytree(checkpoint(architecture, dtype), tmp_path / "checkpoint"))

    return folder


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    """`rewrite(folder, change)`: a checkpoint's tensors, changed by a function, in their files."""

    def apply(
        folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
    ) -> None:
        places = {key: file for file in weight_files(folder) for key in load_weights(file)}
        tensors = {key: t for file in weight_files(folder) for key, t in load_weights(file).items()}
        changed, files = change(tensors) or tensors, sorted(set(places.values()))
        for file in files:
            here = {k: t for k, t in changed.items() if places.get(k, files[-1]) == file}
            save_weights(here, file)

    return apply


@pytest.fixture(scope="session")
def configure() -> Callable[..., None]:
    """`configure(folder, field=value)`: fields of config.json, set; None removes one."""

    def apply(folder: Path, **fields: Any) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(
            json.dumps({name: value for name, value in config.items() if value is not None})
        )

    return apply


@pytest.fixture(scope="session")
def stock() -> Callable[..., PreTrainedModel]:
    """`stock(folder)` -> the model as transformers loads it, its weights in aligned memory.

    `from_pretrained` keeps views of the mapped file, whose addresses depend on the header's length;
    torch's kernels choose by alignment, so a parity test needs both sides aligned. They choose by
    requires_grad too, which streamed weights do not have.
    """

    def load(folder: Path, **options: Any) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model

    return load


@pytest.fixture(scope="session")
def streamed() -> Callable[..., StreamedModel]:
    """`streamed(folder)` -> the model on the CPU at the smallest budget, unless told otherwise."""

    def load(folder: Path, **options: Any) -> StreamedModel:
        return AutoModel.from_pretrained(
            folder, **({"device": "cpu", "host_memory": "min"} | options)
        )

    return load


@pytest.fixture
def prompt() -> torch.Tensor:
    """Token ids [2, 9]."""
    return torch.randint(3, 150, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def keys_of() -> Callable[[Path], list[str]]:
    """`keys_of(file)` -> the names of its tensors."""

    def keys(file: Path) -> list[str]:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())

    return keys
