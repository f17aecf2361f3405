"""Every check passes on a sound model, and goes red on one broken in its way."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch._inductor.exc import InvalidCxxCompiler
from transformers import BatchEncoding, Cache, StaticCache

from harness.matrix import CHECKS, DEALT, load_matrix
from harness.measuring import checks, contract
from harness.measuring.cell import measure
from harness.measuring.checkpoints import checkpoint
from harness.measuring.checks import chat_answer, left_padded, speed
from harness.measuring.contract import blocks, text_blocks
from harness.measuring.subject import Decoded, StockError, Subject, compiling
from rabbitllm import AutoModel
from rabbitllm.checkpoint.legacy import ops


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def subject(cell, cache):
    def make(architecture: str = "llama") -> Subject:
        found = cell(architecture, release=transformers.__version__)
        return Subject(found, checkpoint(found, cache))

    return make


def outcome(name: str, subject: Subject) -> checks.Outcome:
    return checks.load(name)[0](subject)


def block(subject: Subject, index: int = 1) -> torch.nn.Module:
    return list(blocks(subject.streamed).values())[index]


def nudge(subject: Subject) -> None:
    """Add a little to what a block returns."""
    block(subject).register_forward_hook(lambda _m, _a, output: output + 1e-3)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "mistral"])
def test_a_sound_model_passes_every_check(subject, architecture):
    made = subject(architecture)
    for name in CHECKS + DEALT:
        found = outcome(name, made)
        assert (found.status, found.message) == ("pass", ""), name


@pytest.mark.parametrize(
    "name", sorted({name for cell in load_matrix().cells(["5.0.0"]) for name in cell.checks})
)
def test_every_check_has_a_sentence(name):
    sentence = checks.load(name)[1]
    assert sentence.endswith(".")


def test_split_and_load_sees_blocks_that_do_not_stream(subject):
    made = subject()
    made.__dict__["streamed"] = AutoModel.from_pretrained(
        made.folder, device="cpu", attn_implementation="sdpa", host_memory="1GiB"
    )
    found = outcome("split_and_load", made)
    assert found.status == "fail"
    assert (
        "model.layers.0, model.layers.1, model.layers.2, model.layers.3 do not stream"
        in found.message
    )


def test_split_and_load_sees_another_backend_class_and_family(subject):
    made = subject()
    made.streamed.config._attn_implementation = "eager"
    row = replace(
        made.cell.architecture, model_class="Qwen2ForCausalLM", family_class="RabbitLLMQWen2"
    )
    made.cell = replace(made.cell, architecture=row)
    made.__dict__["reference"] = made.streamed
    message = outcome("split_and_load", made).message
    assert "is no Qwen2ForCausalLM" in message
    assert "it is no RabbitLLMQWen2" in message
    assert "it runs eager, asked for sdpa" in message


@pytest.mark.parametrize(
    "name", ["prefill_parity", "incremental_decoding", "left_padded", "cache_fill"]
)
def test_a_block_that_is_a_little_off_is_seen(subject, name):
    made = subject()
    nudge(made)
    assert outcome(name, made).status == "fail"


def test_prefill_parity_sees_stale_weights_of_the_previous_layer(subject):
    made = subject()
    first, second = block(made, 0), block(made, 1)
    kept: dict[str, Any] = {}
    first.register_forward_pre_hook(
        lambda m, _: kept.update({n: p.detach().clone() for n, p in m.named_parameters()})
    )
    second.register_forward_pre_hook(
        lambda m, _: [p.data.copy_(kept[n]) for n, p in m.named_parameters()] and None
    )
    found = outcome("prefill_parity", made)
    assert found.status == "fail"
    assert found.figures["max_abs"] > 0.01


def test_incremental_decoding_sees_shifted_positions(subject):
    made = subject()

    def shift(_model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if args and args[0].shape[1] == 1:
            cache = next(value for value in kwargs.values() if isinstance(value, Cache))
            past = cache.get_seq_length()
            kwargs["position_ids"] = torch.tensor([[past + 1]])
        return args, kwargs

    made.streamed.register_forward_pre_hook(shift, with_kwargs=True)
    found = outcome("incremental_decoding", made)
    assert found.status == "fail"
    assert found.message.startswith("step 1 is off by")
    assert found.figures["first_divergent_token"] == 12


def lose_cache(_block: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    keyword = next(name for name, value in kwargs.items() if isinstance(value, Cache))
    kwargs["of_another_release"] = kwargs.pop(keyword)
    return args, kwargs


def test_cache_fill_sees_a_layer_that_got_the_wrong_keyword(subject):
    made = subject()
    block(made).register_forward_pre_hook(lose_cache, with_kwargs=True)
    found = outcome("cache_fill", made)
    assert found.status in ("fail", "degraded")
    assert "cache lengths differ after step 0" in found.message
    assert found.figures["seen"] == [16, 0, 16, 16]


def test_right_tokens_from_an_unfilled_cache_are_degraded(subject):
    made = subject()
    stock = made.stock_decoded
    unfilled = [[(0, 0) for _ in layers] for layers in stock.lengths]
    made.__dict__["streamed_decoded"] = Decoded(stock.logits, unfilled, stock.keys, stock.values)
    assert outcome("cache_fill", made).status == "degraded"


def test_a_sliding_layer_keeps_what_stock_keeps(subject):
    found = outcome("cache_fill", subject("gemma2" if "gemma2" in _sdpa_works() else "mistral"))
    assert found.status == "pass"
    assert min(found.figures["kept"]) < min(found.figures["seen"])


def _sdpa_works() -> set[str]:
    return {"gemma2"} if transformers.Gemma2ForCausalLM._supports_sdpa else set()


def test_left_padded_sees_a_mask_that_is_lost(subject):
    made = subject()

    def lose(_model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"attention_mask": None}

    made.streamed.register_forward_pre_hook(lose, with_kwargs=True)
    assert outcome("left_padded", made).status == "fail"
    assert outcome("prefill_parity", made).status == "pass"


def test_greedy_generation_sees_another_token(subject):
    made = subject()

    def prefer(_head: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., 7] += 100 * (logits.shape[1] == 1)
        return logits

    made.streamed.get_output_embeddings().register_forward_hook(prefer)
    found = outcome("greedy_generation", made)
    assert found.status == "fail"
    assert found.figures["first_divergent_token"] == 12


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "deepseek_v3"])
def test_other_caches_answer_or_are_refused_as_stock_has_it(subject, architecture):
    found = outcome("other_caches", subject(architecture))
    assert (found.status, found.message) == ("pass", "")
    assert found.figures["static"] == "answers"
    if not torch.cuda.is_available():
        assert found.figures["offloaded"].startswith("AssertionError: Torch not compiled with CUDA")


def test_other_caches_sees_other_logits(subject):
    made = subject()

    def nudged(_model: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if any(isinstance(each, StaticCache) for each in kwargs.values()):
            output.logits += 1e-3
        return output

    made.streamed.register_forward_hook(nudged, with_kwargs=True)
    found = outcome("other_caches", made)
    assert found.status == "fail"
    assert found.message == "static: logits are off by 0.001"


def test_other_caches_sees_another_refusal(subject):
    made = subject()
    answer = type(made.reference).generate

    def refusing(model: Any) -> Any:
        def refuse(*args: Any, cache_implementation: str, **options: Any) -> Any:
            options["cache_implementation"] = f"no {cache_implementation}"
            return answer(model, *args, **options)

        return refuse

    made.streamed.generate = refusing(made.streamed)
    found = outcome("other_caches", made)
    assert found.status == "fail"
    assert "static: ValueError: Invalid `cache_implementation` (no static)" in found.message
    assert "(stock: it answers)" in found.message
    made.reference.generate = refusing(made.reference)
    assert outcome("other_caches", made).status == "not-run"


def test_other_caches_takes_an_error_in_a_forward_for_no_refusal(subject):
    def fail(*_: Any) -> None:
        raise ValueError("no such cache")

    made = subject()
    block(made).register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no such cache"):
        outcome("other_caches", made)
    made.reference.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(StockError):
        outcome("other_caches", made)


def test_tied_head_sees_two_tensors_where_stock_has_one(subject):
    made = subject("llama-tied")
    head, embedding = made.streamed.get_output_embeddings(), made.streamed.get_input_embeddings()

    def untie(module: torch.nn.Module, _: object) -> None:
        embedding._parameters["weight"] = torch.nn.Parameter(module.weight.clone(), False)

    head.register_forward_pre_hook(untie)
    found = outcome("tied_head", made)
    assert found.status == "fail"
    assert "they are two tensors, stock's one tensor" in found.message


def test_tied_head_sees_another_head(subject):
    made = subject("llama")
    stock = made.reference.get_input_embeddings().weight
    made.streamed.get_output_embeddings().register_forward_pre_hook(
        lambda module, _: module._parameters.update(weight=torch.nn.Parameter(stock.clone(), False))
    )
    found = outcome("tied_head", made)
    assert "the head holds other values than stock's" in found.message


def test_residency_sees_weights_that_stay_bound(subject):
    made = subject()

    def keep(module: torch.nn.Module, *_: object) -> None:
        module.mlp.up_proj._parameters["weight"] = torch.nn.Parameter(torch.zeros(128, 64), False)

    block(made).register_forward_hook(keep)
    found = outcome("residency", made)
    assert found.status == "fail"
    assert "after the forward model.layers.1 still hold weights" in found.message


def test_residency_sees_weights_hoarded_out_of_sight(subject):
    made = subject()
    hoard: list[torch.Tensor] = []
    for layer in blocks(made.streamed).values():
        layer.register_forward_pre_hook(
            lambda m, _: hoard.extend(p.detach().clone() for p in m.parameters())
        )
    found = outcome("residency", made)
    assert found.status == "fail"
    assert "bytes are held" in found.message


def test_residency_sees_a_block_that_runs_without_weights(subject):
    made = subject()
    block(made).register_forward_pre_hook(lambda m, _: m.mlp.to("meta") and None)
    assert "model.layers.1 ran with weights missing" in outcome("residency", made).message


def test_speed_keeps_samples_of_all_three(subject):
    figures = outcome("speed", subject()).figures
    rounds = len(figures["streamed_tokens_per_second"])
    assert 1 <= rounds <= 8
    for name, expected in {"streamed": rounds, "stock": rounds, "accelerate": 1}.items():
        for unit in ("tokens_per_second", "cpu_seconds_per_token"):
            assert len(figures[f"{name}_{unit}"]) == expected
            assert min(figures[f"{name}_{unit}"]) > 0
    assert figures["bytes_from_disk_per_forward"] > 0


@pytest.mark.parametrize(("disk", "expected"), [(2.0, 1.0), (8.0, 3.0)])
def test_the_limit_of_speed_is_the_disk_or_stock(monkeypatch, tmp_path, disk, expected):
    monkeypatch.setattr(speed, "direct_read_bandwidth", lambda *_, **__: disk)
    figures = {
        "bytes_from_disk_per_forward": 2e9,
        "bytes_to_device_per_forward": 0,
        "stock_tokens_per_second": [2.0, 3.0, 4.0],
    }
    made = SimpleNamespace(folder=tmp_path, device=torch.device("cpu"))
    assert speed.limit(made, figures) == pytest.approx(expected)


class Words:
    """A tokenizer whose tokens are words, as far as chat_answer needs one."""

    known = ("It", "is", "Paris", "Rome")

    def apply_chat_template(self, *_: object, **__: object) -> Any:
        return BatchEncoding({"input_ids": torch.zeros(1, 2)})

    def decode(self, tokens: torch.Tensor, **_: object) -> str:
        return " ".join(self.known[token] for token in tokens)


@pytest.mark.parametrize(
    ("ours", "stock", "status"),
    [
        ([0, 1, 2], [0, 1, 2], "pass"),
        ([2, 1, 2], [0, 1, 2], "fail"),
        ([0, 1, 3], [0, 1, 3], "reference-broken"),
        ([0, 1, 2], [0, 1, 3], "reference-broken"),
    ],
)
def test_a_chat_answer_is_right_if_stock_s_is(monkeypatch, ours, stock, status):
    made = SimpleNamespace(
        streamed=SimpleNamespace(tokenizer=Words()), reference=None, device=torch.device("cpu")
    )
    answers = {id(made.streamed): ours, id(made.reference): stock}
    monkeypatch.setattr(chat_answer, "answer", lambda m, _: torch.tensor(answers[id(m)]))
    assert chat_answer.run(made).status == status


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_all_threads_are_timed_on_one_core_and_let_go_afterwards():
    before = os.sched_getaffinity(0)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    with speed.on_one_core():
        inside = {len(os.sched_getaffinity(task)) for task in (0, thread.native_id)}
    after = [os.sched_getaffinity(task) for task in (0, thread.native_id)]
    ended.set()
    thread.join()
    assert inside == {1}
    assert after == [before, before]


def test_speed_of_an_uncompiled_backend_says_nothing(subject, cell):
    made = subject()
    made.cell = cell("llama", "flex_attention")
    assert outcome("speed", made).status == "not-run"


def test_compiled_lets_torch_compile_and_needs_a_compiler(subject, monkeypatch):
    made, modes = subject(), []

    def look(self: Any, *_: Any) -> None:
        modes.append(torch._dynamo.eval_frame._stance.stance)

    monkeypatch.setattr(left_padded, "run", look)
    with compiling(allowed=False):
        outcome("compiled", made)
    assert modes == ["default"]

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("harness.measuring.checks.compiled.get_cpp_compiler", none)
    found = outcome("compiled", made)
    assert (found.status, found.message) == ("not-run", "torch finds no C++ compiler")


def test_a_torch_without_stances_compiles_all_the_same(monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance")
    with compiling(allowed=True):
        pass
    with pytest.raises(AttributeError), compiling(allowed=False):
        pass


def test_probes_describe_the_contract(subject):
    made = subject("qwen2")
    assert outcome("contract", made).status == "pass"
    found = made.probes
    assert found["layer_returns"] == "Tensor"
    assert found["cache_keyword"] in found["accepts"]
    assert found["cache_keyword"] in ("past_key_values", "cache")
    assert found["cache_lengths"] == [3] * 4
    assert found["head_dim"] == 64
    assert found["gets_position_embeddings"]
    other = subject("qwen3")
    outcome("contract", other)
    assert other.probes["implied_head_dim"] == 16


def test_a_probe_that_fails_by_itself_is_not_stocks_fault(cell, cache, monkeypatch):
    monkeypatch.delattr(contract, "layer_lengths")
    found = measure(cell("llama", release=transformers.__version__), cache)
    assert (found.status, found.exception) == ("fail", "NameError")
    assert found.message.startswith("contract: NameError")
    assert found.checks["prefill_parity"].status == "pass"


def test_a_cell_passes_from_end_to_end(cell, cache):
    found = measure(cell("llama", release=transformers.__version__), cache)
    assert (found.status, found.message) == ("pass", "")
    assert list(found.checks) == list(cell("llama").checks)
    assert found.probes["layer_returns"] == "Tensor"


def test_a_model_that_the_release_lacks_is_unsupported(cell, cache):
    found = cell("llama", release=transformers.__version__)
    row = replace(found.architecture, model_class="LlamaOfTomorrow")
    measured = measure(replace(found, architecture=row), cache)
    assert measured.status == "unsupported"
    assert measured.message == f"transformers {transformers.__version__} has no LlamaOfTomorrow"


def test_a_family_without_a_stock_class_is_compared_with_its_own_forward(cell, cache):
    own = cell("internlm2", release=transformers.__version__)
    found = measure(replace(own, dealt=("speed",)), cache)
    assert (found.status, found.message) == ("pass", "")
    assert found.checks["prefill_parity"].figures["relative"] < 2e-5
    assert found.checks["speed"].status == "not-run"


def test_a_wrong_map_of_such_a_family_is_seen(cell, cache, tmp_path, monkeypatch):
    def groups_in_another_order(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts = original(self, *args, **kwargs)
        return {name: part.flip(0) for name, part in parts.items()}

    original = ops.SplitGroups.convert
    monkeypatch.setattr(ops.SplitGroups, "convert", groups_in_another_order)
    found = measure(cell("internlm2", release=transformers.__version__), tmp_path)
    assert found.checks["split_and_load"].status == "pass"
    for name in ("prefill_parity", "incremental_decoding", "cache_fill", "left_padded"):
        assert found.checks[name].status == "fail", name


def test_a_vision_tower_does_not_run_for_a_text(subject):
    made = subject("gemma3-multimodal")
    assert len(blocks(made.streamed)) > len(text_blocks(made.streamed)) == 6
    assert outcome("residency", made).status == "pass"


def test_an_engine_that_raises_fails_the_cell_and_the_rest_is_not_run(cell, cache, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("size of tensor a (14)")

    monkeypatch.setattr(AutoModel, "from_pretrained", broken)
    found = measure(cell("llama", release=transformers.__version__), cache)
    assert found.status == "fail"
    assert found.exception == "RuntimeError"
    assert found.message == "split_and_load: RuntimeError: size of tensor a (14)"
    assert "in broken" in found.traceback
    later = list(found.checks.values())[2:]
    assert {result.status for result in later} == {"not-run"}


def test_stock_that_raises_is_to_blame_itself(cell, cache, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no sdpa")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", broken)
    found = measure(cell("llama", release=transformers.__version__), cache)
    assert (found.status, found.exception, found.message) == (
        "reference-broken",
        "ValueError",
        "no sdpa",
    )
    assert found.checks == {}
