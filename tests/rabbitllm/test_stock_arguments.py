"""Code written for stock's `from_pretrained`: the same arguments, and the same model."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from rabbitllm import AutoModel, CheckpointError, StreamedModel
from rabbitllm.stock_arguments import (
    ACCEPTED,
    ARGUMENTS,
    HONOURED,
    OWN,
    WHOLE,
    Refused,
    Targets,
    accept_stock,
    budgets_of,
    pick_one,
    targets_of,
)

CPU = torch.device("cpu")
GPU, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
OLD, NEW = "1" * 40, "2" * 40
REFUSED = {name: rule for name, rule in ARGUMENTS.items() if isinstance(rule, Refused)}


def arguments_of(function: Callable[..., Any]) -> set[str]:
    """The parameters of a function, and what it takes out of its keyword arguments."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        or parameter.kind is parameter.KEYWORD_ONLY
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="kwargs" | "hub_kwargs"), attr="pop" | "get"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found.add(name)
            case ast.List(elts=[ast.Constant(value=str()), *_]):  # names that a loop goes over
                found |= {each.value for each in node.elts if isinstance(each, ast.Constant)}
    return found


@pytest.mark.parametrize("stock", [PreTrainedModel, AutoModelForCausalLM])
def test_the_table_has_every_argument_of_stock(stock: Any) -> None:
    names = arguments_of(stock.from_pretrained.__func__) - {"cls"}
    assert {"config", "revision", "torch_dtype", "low_cpu_mem_usage"} & names
    assert names <= ARGUMENTS.keys()


def test_what_is_honoured_is_a_parameter_and_nothing_else_is() -> None:
    honoured = {name for name, rule in ARGUMENTS.items() if rule == HONOURED}
    assert arguments_of(AutoModel.from_pretrained.__func__) - {"cls"} == honoured | set(OWN)


@pytest.mark.parametrize("name", [name for name, rule in ARGUMENTS.items() if rule == ACCEPTED])
def test_what_is_so_already_is_accepted(name: str) -> None:
    assert accept_stock({name: True}) == accept_stock({name: None}) == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused_by_name_and_accepted_where_it_asks_for_nothing(
    name: str, checkpoint: Callable[..., Path]
) -> None:
    rule = REFUSED[name]
    for idle in rule.idle:
        assert accept_stock({name: idle}) == {}
    with pytest.raises(ValueError, match=f"^{name}='x' has no meaning") as caught:
        AutoModel.from_pretrained(checkpoint(), **{name: "x"})
    assert str(caught.value).endswith(rule.instead)


def test_a_refusal_does_not_print_the_weights() -> None:
    weights = {str(i): torch.ones(1000, 1000) for i in range(100)}
    with pytest.raises(ValueError, match=r"^state_dict=") as caught:
        accept_stock({"state_dict": weights})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("revison", "revision"),
        ("torch_type", "torch_dtype"),
        ("use_chache", "use_cache"),
        ("device_mp", "device_map"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("hots_memory", "host_memory"),
        ("prefetchng", "prefetching"),
    ],
)
def test_an_unknown_argument_is_a_type_error_with_the_nearest_name(
    wrong: str, right: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(TypeError, match=f"argument '{wrong}'. Did you mean '{right}'"):
        AutoModel.from_pretrained(checkpoint(), **{wrong: 1})


def test_an_argument_without_a_name_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match=r"^'cpu' has no name\. Pass all but the model by keyword"):
        AutoModel.from_pretrained(checkpoint(), "cpu")


def test_a_config_alone_is_refused(checkpoint: Callable[..., Path]) -> None:
    config = AutoConfig.from_pretrained(checkpoint())
    with pytest.raises(RuntimeError, match=r"LlamaConfig alone has no weights.*from_pretrained"):
        AutoModel.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("name", ["config", "generation_config", "max_memory"])
def test_a_value_of_another_type_is_named(name: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match=rf"^{name}=3 is not a "):
        AutoModel.from_pretrained(checkpoint(), **{name: 3})


# devices and budgets


@pytest.mark.parametrize(
    "device_map", [None, "cpu", CPU, {"": "cpu"}, {"": CPU}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_a_device_map_that_means_one_device_is_that(device_map: Any) -> None:
    assert targets_of("cpu", device_map) == Targets((CPU,))
    assert device_map is None or targets_of("auto", device_map) == Targets((CPU,))


@pytest.mark.parametrize("device_map", [*WHOLE, {"": "auto"}, {}])
def test_a_device_map_that_leaves_the_choice_leaves_it(device_map: Any) -> None:
    assert targets_of("cpu", device_map) == Targets((CPU,))
    assert targets_of("auto", device_map) == targets_of("auto", None)


def test_an_index_is_a_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device_map in (1, "cuda:1", torch.device("cuda:1"), {"": 1}, {"model": 1, "lm_head": 1}):
        assert targets_of("auto", device_map) == Targets((SECOND,))
    assert targets_of("auto", "cuda") == Targets((GPU,))
    with pytest.raises(ValueError, match=r"device=.* and device_map=.* contradict each other"):
        targets_of("cpu", 1)
    with pytest.raises(ValueError, match=r"^device_map=2 is understood as device=\. .*not there"):
        targets_of("auto", 2)


def test_several_gpus_are_taken_as_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in (["cuda:1", "cuda:0"], "cuda:1,cuda:0", "cuda:1, cuda", (SECOND, GPU)):
        assert targets_of(device, None) == Targets((SECOND, GPU))
    with pytest.raises(ValueError, match=r"device=.* and device_map=0 contradict each other"):
        targets_of("cuda:0,cuda:1", 0)


def test_unless_named_all_gpus_are_taken_or_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert targets_of("auto", None) == targets_of("auto", "balanced")
    assert targets_of("auto", None) == Targets((GPU, SECOND), fewest=True)


def test_torchs_default_device_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = {"": torch.device("cuda:1")}  # what stock finds after set_default_device("cuda:1")
    monkeypatch.setattr("rabbitllm.stock_arguments.check_and_set_device_map", lambda _: found)
    assert targets_of("auto", None) == targets_of("auto", "auto") == Targets((SECOND,))
    assert targets_of("cpu", None) == Targets((CPU,))


def test_a_model_does_not_load_onto_the_meta_device(checkpoint: Callable[..., Path]) -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        AutoModel.from_pretrained(checkpoint("llama"))


@pytest.mark.parametrize("options", [{}, {"compression": "lossless", "dtype": "bfloat16"}])
def test_another_default_device_changes_nothing(
    options: dict[str, Any],
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = checkpoint("llama", dtype=torch.bfloat16) if options else checkpoint("llama")
    options = options | {"layer_shards_saving_path": tmp_path}
    expected = streamed(folder, **options)(prompt).logits
    monkeypatch.setattr("rabbitllm.stock_arguments.check_and_set_device_map", lambda _: None)
    with torch.device("meta"):  # any tensor that goes there by oversight cannot be read
        model = streamed(folder, **options)
        assert torch.equal(model(prompt).logits, expected)
        assert not any(weight.is_meta for weight in model.state_dict().values())
        with model.weights("lm_head"):
            assert not model.lm_head.weight.is_meta


@pytest.mark.parametrize(
    "device_map",
    [{"model.embed_tokens": 0, "model.layers.0": "cpu"}, {"model": 0, "lm_head": "disk"}, "disk"],
)
def test_a_device_map_that_places_modules_is_refused(device_map: Any) -> None:
    with pytest.raises(ValueError, match=r"places modules one by one.*device_memory="):
        targets_of("auto", device_map)


@pytest.mark.parametrize("device_map", ["mps", "meta", "best", {"": "tpu"}])
def test_a_device_map_that_means_no_device_here_is_named(device_map: Any) -> None:
    with pytest.raises(ValueError, match=r"^device_map=.* is understood as device="):
        targets_of("auto", device_map)


@pytest.mark.parametrize(
    ("max_memory", "device", "expected"),
    [
        (None, CPU, ("auto", "auto")),
        ({}, CPU, ("auto", "auto")),
        ({"cpu": "1GB"}, CPU, ("auto", "1GB")),
        ({0: 10**9, "cpu": "30GiB", "disk": "1TB"}, GPU, (10**9, "30GiB")),
        ({"cuda:0": "4GiB"}, GPU, ("4GiB", "auto")),
        ({0: "4GiB", 1: "8GiB"}, torch.device("cuda", 1), ("8GiB", "auto")),
        ({0: "4GiB"}, CPU, ("auto", "auto")),
    ],
)
def test_max_memory_is_the_budgets(
    max_memory: Any, device: torch.device, expected: tuple[Any, Any]
) -> None:
    device_memory, host_memory = expected
    each, host = budgets_of("auto", "auto", max_memory, (device,))
    assert host == host_memory
    assert each == {device: host_memory if device == CPU else device_memory}


def test_each_gpu_has_its_budget() -> None:
    both = GPU, SECOND
    assert budgets_of("4GiB", "1GB", None, both) == (dict.fromkeys(both, "4GiB"), "1GB")
    for memory in (["4GiB", 10**9], ("4GiB", 10**9)):
        assert budgets_of(memory, "auto", None, both) == ({GPU: "4GiB", SECOND: 10**9}, "auto")
    assert budgets_of("4GiB, min", "auto", None, both)[0] == {GPU: "4GiB", SECOND: "min"}
    found = budgets_of("auto", "auto", {0: "1GiB", 1: "2GiB", 2: "3GiB", "cpu": "4GiB"}, both)
    assert found == ({GPU: "1GiB", SECOND: "2GiB"}, "4GiB")
    for memory in (["4GiB"], "1GiB,2GiB,3GiB"):
        with pytest.raises(ValueError, match=r"has [13] budgets, and device= means 2: cuda:0, c"):
            budgets_of(memory, "auto", None, both)
    with pytest.raises(ValueError, match=r"device_memory='4GiB' and max_memory\[1\]='1GiB'"):
        budgets_of("4GiB", "auto", {1: "1GiB"}, both)


def test_max_memory_bounds_what_is_loaded(checkpoint: Callable[..., Path]) -> None:
    model = AutoModel.from_pretrained(checkpoint(), device_map="cpu", max_memory={"cpu": "min"})
    assert model.streaming_plan.streamed("disk")
    with pytest.raises(ValueError, match="'lots' is no size"):
        AutoModel.from_pretrained(checkpoint(), device="cpu", max_memory={"cpu": "lots"})
    with pytest.raises(ValueError, match=r"max_memory names 'gpu', which is no device"):
        AutoModel.from_pretrained(checkpoint(), device="cpu", max_memory={"gpu": "1GB"})
    with pytest.raises(ValueError, match=r"host_memory='min' and max_memory\['cpu'\]='1GB'"):
        budgets_of("auto", "min", {"cpu": "1GB"}, (CPU,))


def test_of_two_names_one_may_be_given() -> None:
    assert pick_one({"dtype": "auto", "torch_dtype": None}) == "auto"
    assert pick_one({"dtype": "auto", "torch_dtype": torch.float16}) == torch.float16
    assert pick_one({"dtype": "float16", "torch_dtype": torch.float16}) == "float16"
    with pytest.raises(ValueError, match=r"dtype='bfloat16' and torch_dtype=torch.float16 contra"):
        pick_one({"dtype": "bfloat16", "torch_dtype": torch.float16})


# the same model as stock's


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, build: Callable[..., PreTrainedModel]) -> Path:
    """A cache of huggingface_hub with `tiny/llama`.

    Its revisions "main" and "old" have different numbers of layers; "main" has another model in
    the subfolder "inside/small".
    """
    root = tmp_path_factory.mktemp("hub")
    repo = root / "models--tiny--llama"
    for commit, layers in ((OLD, 2), (NEW, 3)):
        build("llama", num_hidden_layers=layers).save_pretrained(repo / "snapshots" / commit)
    small = repo / "snapshots" / NEW / "inside" / "small"
    build("llama", num_hidden_layers=1).save_pretrained(small)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(NEW)
    (repo / "refs" / "old").write_text(OLD)
    return root


def check_same(model: StreamedModel, stock: PreTrainedModel, prompt: torch.Tensor) -> None:
    assert model.config.to_dict() == stock.config.to_dict()
    assert model.dtype == stock.dtype
    generation = stock.generation_config
    assert generation is not None
    assert model.generation_config.to_dict() == generation.to_dict()
    with torch.no_grad():
        torch.testing.assert_close(model(prompt).logits, stock(prompt).logits)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, 3),
        ({"revision": "main"}, 3),
        ({"revision": "old"}, 2),
        ({"revision": OLD}, 2),
        ({"subfolder": "inside/small"}, 1),
        ({"dtype": torch.bfloat16}, 3),
        ({"torch_dtype": torch.float16}, 3),
        ({"torch_dtype": "bfloat16", "low_cpu_mem_usage": True, "device_map": "cpu"}, 3),
        ({"num_hidden_layers": 2}, 2),
        ({"use_cache": False, "rms_norm_eps": 0.1}, 3),
        ({"attn_implementation": None, "_attn_implementation": "eager"}, 3),
        ({"attn_implementation": "eager", "output_attentions": True}, 3),
        ({"generation_config": GenerationConfig(max_new_tokens=3, top_k=7)}, 3),
        ({"quantization_config": None, "offload_folder": "offload", "use_safetensors": True}, 3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_model_is_stocks(
    cache: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    options: dict[str, Any],
    layers: int,
) -> None:
    common = {"cache_dir": cache, "local_files_only": True, "attn_implementation": "sdpa"}
    model = streamed("tiny/llama", **common | options)
    assert model.config.num_hidden_layers == layers
    expected = stock("tiny/llama", **common | options)
    if "eager" in options.values():
        assert model.active_attention_implementation == "eager"
    check_same(model, expected, prompt)


def test_a_given_config_takes_the_place_of_the_checkpoints(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    config = AutoConfig.from_pretrained(checkpoint(), num_hidden_layers=2, rms_norm_eps=0.1)
    config._attn_implementation = "eager"
    before = config.to_dict()
    model = streamed(checkpoint(), config=config)
    assert config.to_dict() == before
    assert model.active_attention_implementation == "eager"
    check_same(model, stock(checkpoint(), config=config), prompt)

    config.save_pretrained(tmp_path)
    for named in (tmp_path, str(tmp_path / "config.json")):
        named_model = streamed(checkpoint(), config=named, attn_implementation="eager")
        assert named_model(prompt).logits.equal(model(prompt).logits)


def test_weights_without_a_config_load_with_a_given_one(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    folder = copied()
    expected = streamed(folder)(prompt).logits
    config = AutoConfig.from_pretrained(folder)
    (folder / "config.json").unlink()
    assert streamed(folder, config=config)(prompt).logits.equal(expected)


def test_a_config_that_does_not_fit_is_named(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    config = AutoConfig.from_pretrained(checkpoint())
    with pytest.raises(TypeError, match=r"use_cache= changes.* Set config\.use_cache instead"):
        streamed(checkpoint(), config=config, use_cache=False)
    with pytest.raises(TypeError, match=r"argument 'use_cash'\. Did you mean 'use_cache'"):
        streamed(checkpoint(), config=config, use_cash=False)
    config.num_hidden_layers = 0
    with pytest.raises(CheckpointError, match=r"^config= is no valid config of 'llama'"):
        streamed(checkpoint(), config=config)
    config = AutoConfig.from_pretrained(checkpoint())
    config.quantization_config = {"quant_method": "hqq"}
    with pytest.raises(CheckpointError, match=r"^config= is quantised \(hqq\)"):
        streamed(checkpoint(), config=config)
    message = r"config\.json with num_hidden_layers=0 is no valid config of 'llama'"
    with pytest.raises(CheckpointError, match=message):
        streamed(checkpoint(), num_hidden_layers=0)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_the_experts_implementation_is_the_asked_one(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    implementation: str,
) -> None:
    options = {"experts_implementation": implementation, "attn_implementation": "sdpa"}
    model = streamed(checkpoint("mixtral"), **options)
    assert model.config._experts_implementation == implementation
    check_same(model, stock(checkpoint("mixtral"), **options), prompt)


def test_the_loading_info_is_stocks(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
) -> None:
    folder = copied("mixtral")
    rewrite(folder, lambda tensors: tensors | {"score.weight": torch.ones(2)})
    for options in ({}, {"num_hidden_layers": 3}):
        _, expected = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **options
        )
        result: Any = streamed(folder, output_loading_info=True, **options)
        model, info = result
        assert isinstance(model, StreamedModel)
        assert info == expected
        assert "score.weight" in info["unexpected_keys"]


def test_a_subfolder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[..., Path]
) -> None:
    shutil.copytree(checkpoint(), tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    loaded = AutoModel.from_pretrained("models", subfolder="small", device="cpu")
    assert loaded.checkpoint_folder == tmp_path / "models" / "small"
    missing = re.escape(str(tmp_path / "models" / "large"))
    with pytest.raises(CheckpointError, match=f"No such folder: {missing}"):
        AutoModel.from_pretrained("models", subfolder="large")
