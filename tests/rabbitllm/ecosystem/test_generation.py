"""What works around `generate`: streamers, scores, caches, pipelines, evaluation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TextIteratorStreamer, cache_utils, pipeline

from rabbitllm import StreamedModel
from tests.patience import PATIENCE

GREEDY = {"max_new_tokens": 8, "do_sample": False}
CONVERSATIONS = [
    [{"role": "user", "content": "Who are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
]


def test_a_pipeline_answers_a_batch_of_conversations(
    talker: Path, stock: Callable[..., PreTrainedModel], streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(talker)
    answers = [
        pipeline("text-generation", model=each, tokenizer=model.tokenizer)(
            CONVERSATIONS, batch_size=2, **GREEDY
        )
        for each in (model, stock(talker))
    ]
    assert answers[0] == answers[1]
    assert [turn["role"] for turn in answers[0][1][0]["generated_text"]][-1] == "assistant"


def test_a_text_iterator_streamer(
    talker: Path, stock: Callable[..., PreTrainedModel], streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(talker)
    inputs = model.tokenizer("A long time ago", return_tensors="pt")
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, timeout=PATIENCE)
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, "streamer": streamer, **GREEDY}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    expected = stock(talker).generate(**inputs, **GREEDY)[0, inputs.input_ids.shape[1] :]
    assert text == model.tokenizer.decode(expected)
    assert text


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    beams: int,
) -> None:
    scores = []
    for model in (streamed(checkpoint()), stock(checkpoint())):
        output = model.generate(
            prompt, num_beams=beams, return_dict_in_generate=True, output_scores=True, **GREEDY
        )
        indices = output.beam_indices if beams > 1 else None
        scores.append(
            model.compute_transition_scores(
                output.sequences, output.scores, indices, normalize_logits=True
            )
        )
    assert torch.equal(*scores)
    assert (scores[0] < 0).any()


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"cache_implementation": "offloaded_static"},
        {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
        {"cache_implementation": "quantized", "cache_config": {"backend": "hqq"}},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_caches(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    options: dict[str, Any],
) -> None:
    """Where a package or a GPU is missing, stock's own words say so."""

    def answer(model: PreTrainedModel) -> list[int] | tuple[type, str]:
        try:
            return model.generate(prompt, **deepcopy(options), **GREEDY).tolist()
        except (AssertionError, ImportError, RuntimeError) as error:
            return type(error), str(error)

    assert answer(streamed(checkpoint())) == answer(stock(checkpoint()))


def test_a_cache_in_8_bits(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    if not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers quantises caches with other packages alone")
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}, **GREEDY}
    models = streamed(checkpoint()), stock(checkpoint())
    logits = [
        torch.stack(
            model.generate(
                prompt, **options, output_logits=True, return_dict_in_generate=True
            ).logits
        )
        for model in models
    ]
    assert torch.equal(*logits)
    plain = models[0].generate(prompt, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert not torch.equal(torch.stack(plain.logits), logits[0])


def test_lm_eval(
    talker: Path, stock: Callable[..., PreTrainedModel], streamed: Callable[..., StreamedModel]
) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    api = pytest.importorskip("lm_eval.api.instance")
    pairs = [("The sky is", " blue"), ("Two and two make", " five"), ("A", "B")]
    requests = [api.Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = streamed(talker)
    results = [
        huggingface.HFLM(pretrained=each, tokenizer=model.tokenizer, batch_size=2).loglikelihood(
            requests
        )
        for each in (model, stock(talker))
    ]
    assert results[0] == results[1]
    assert len({likelihood for likelihood, _ in results[0]}) == len(pairs)
