"""The official client against a real server in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer, PreTrainedModel

from tests.patience import PATIENCE

KEY, NAME = "a secret", "tiny/talker"
HELLO: Any = [{"role": "user", "content": "Hello"}]
PROMPT = "<user>Hello\n<assistant>"
"""What the talker's template makes of it."""
ENDLESS = 15_000
"""Tokens that take minutes."""


@pytest.fixture(scope="module")
def server(talker: Path) -> Iterator[subprocess.Popen[str]]:
    """A server with a key, which answers two at once, and has memory for a long one besides."""
    arguments = ["serve", str(talker), "--port", "0", "--host-memory", "min", "--api-key", KEY]
    arguments += [
        "--queue",
        "600KiB",
        "--sequences",
        "2",
        "--max-new-tokens",
        "7",
        "--device",
        "cpu",
        "--name",
        NAME,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rabbitllm", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str]) -> str:
    assert server.stderr
    printed = []
    for line in server.stderr:
        printed.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return found[0]
    raise AssertionError("".join(printed))


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def expected(talker: Path, stock: Callable[..., PreTrainedModel]) -> Callable[[str, int], str]:
    """`expected(prompt, tokens)` -> stock's greedy continuation."""
    model, tokenizer = stock(talker), AutoTokenizer.from_pretrained(talker)

    def text(prompt: str, tokens: int) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(output[0, inputs.input_ids.shape[1] :])

    return text


def chat(client: openai.OpenAI, **options: Any) -> Any:
    defaults = {"model": NAME, "messages": HELLO, "temperature": 0}
    return client.chat.completions.create(**(defaults | options))


# answers


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "rabbitllm"


def test_a_chat_answer_is_stocks(
    client: openai.OpenAI, expected: Callable[[str, int], str]
) -> None:
    answer = chat(client)
    choice = answer.choices[0]
    assert choice.message.content == expected(PROMPT, 7)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == len(PROMPT) + 7
    assert answer.id.startswith("chatcmpl-")


def test_a_streamed_chat_answer_is_the_same(
    client: openai.OpenAI, expected: Callable[[str, int], str]
) -> None:
    stream = chat(client, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    *parts, counts = chunks
    deltas = [chunk.choices[0].delta for chunk in parts]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas[1:-1]] == list(expected(PROMPT, 7))
    assert parts[-1].choices[0].finish_reason == "length"
    assert counts.choices == []
    assert counts.usage.completion_tokens == 7
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_conversation_may_be_in_parts_and_have_any_turns(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "y"}],
        },
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hey"}]
    contents = [chat(client, messages=m).choices[0].message.content for m in (messages, plain)]
    assert contents[0] == contents[1] != chat(client).choices[0].message.content


@pytest.mark.parametrize("streamed", [False, True])
def test_a_completion_is_stocks(
    client: openai.OpenAI, expected: Callable[[str, int], str], streamed: bool
) -> None:
    answer: Any = client.completions.create(
        model=NAME, prompt="Once", max_tokens=9, temperature=0, stream=streamed
    )
    choices = [chunk.choices[0] for chunk in (answer if streamed else [answer])]
    assert "".join(choice.text for choice in choices) == expected("Once", 9)
    assert choices[-1].finish_reason == "length"


def test_a_prompt_may_be_token_ids(client: openai.OpenAI, talker: Path) -> None:
    ids = AutoTokenizer.from_pretrained(talker)("Once").input_ids
    texts = [
        client.completions.create(model=NAME, prompt=prompt, temperature=0).choices[0].text
        for prompt in (ids, "Once", ["Once"])
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 16


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_the_answer(
    client: openai.OpenAI, expected: Callable[[str, int], str], streamed: bool
) -> None:
    whole = expected(PROMPT, 7)
    answer = chat(client, stop=[whole[3:5], "nothing"], stream=streamed)
    if streamed:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (whole.split(whole[3:5])[0], "stop")


def test_a_seed_repeats_a_sample(client: openai.OpenAI) -> None:
    samples = [
        chat(client, temperature=1.5, top_p=0.99, seed=seed, max_tokens=40).choices[0]
        for seed in (1, 2, 1)
    ]
    contents = [sample.message.content for sample in samples]
    assert contents[0] == contents[2] != contents[1]


def test_several_answers_to_one_request(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 20}
    answer = chat(client, **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 60
    assert texts[0] == chat(client, **options | {"n": 1}).choices[0].message.content
    streamed = dict.fromkeys(range(3), "")
    for chunk in chat(client, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_of_a_chat_are_the_models(
    client: openai.OpenAI, talker: Path, stock: Callable[..., PreTrainedModel], streamed: bool
) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, stream=streamed)
    parts = [chunk.choices[0] for chunk in (answer if streamed else [answer])]
    entries = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
    tokenizer = AutoTokenizer.from_pretrained(talker)
    ids = tokenizer(PROMPT + "".join(entry.token for entry in entries), return_tensors="pt")
    logits = stock(talker)(**ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    assert len(entries) == 7
    for entry, row in zip(entries, logits, strict=True):
        best = row.topk(2)
        assert [top.token for top in entry.top_logprobs] == [
            tokenizer.decode([i]) for i in best.indices
        ]
        assert entry.logprob == pytest.approx(best.values[0].item(), abs=1e-4)
        assert entry.bytes == list(entry.token.encode())


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=NAME, prompt="Once", max_tokens=4, temperature=0, logprobs=1
    )
    (choice,) = answer.choices
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    tops = [next(iter(top.values())) for top in choice.logprobs.top_logprobs]
    assert tops == choice.logprobs.token_logprobs


@pytest.mark.parametrize("streamed", [False, True])
def test_an_echo_comes_first(
    client: openai.OpenAI, expected: Callable[[str, int], str], streamed: bool
) -> None:
    answer: Any = client.completions.create(
        model=NAME, prompt="Once", max_tokens=4, temperature=0, echo=True, stream=streamed
    )
    choices = [chunk.choices[0] for chunk in (answer if streamed else [answer])]
    assert "".join(choice.text for choice in choices) == "Once" + expected("Once", 4)


def test_a_stop_may_be_a_token(
    client: openai.OpenAI, expected: Callable[[str, int], str], talker: Path
) -> None:
    text = expected(PROMPT, 7)
    (token,) = AutoTokenizer.from_pretrained(talker)(text[3]).input_ids
    choice = chat(client, extra_body={"stop": [token]}).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text.split(text[3])[0], "stop")


def test_the_likeliest_one_is_no_draw(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 2, "max_tokens": 20}
    drawn = chat(client, extra_body={"top_k": 1}, **options).choices[0].message.content
    sure = chat(client, extra_body={"min_p": 1.0}, **options).choices[0].message.content
    assert drawn == sure == chat(client, max_tokens=20).choices[0].message.content


# refusals


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "No model 'gpt-4' here"),
        ({"store": True}, openai.BadRequestError, "store=True is not supported"),
        ({"temperature": 3}, openai.BadRequestError, "temperature: .*less than or equal to 2"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: .*greater than"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, r"tools\[0\]\.function: "),
        ({"messages": []}, openai.BadRequestError, "messages: .*at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            openai.BadRequestError,
            r"messages\[0\]\.content\[0\]\.type: ",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 20_000}]},
            openai.BadRequestError,
            "the model's context is 20000",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    client: openai.OpenAI, options: dict[str, Any], kind: type[openai.APIError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        chat(client, **options)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["", [], [-1], [259], ["two", "prompts"]])
def test_a_bad_prompt_is_refused(client: openai.OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.completions.create(model=NAME, prompt=prompt)


@pytest.mark.parametrize("key", ["wrong", f"{KEY}x", KEY[:-1]])
def test_a_wrong_key_opens_nothing(client: openai.OpenAI, key: str) -> None:
    stranger = client.with_options(api_key=key)
    with pytest.raises(openai.AuthenticationError, match="No valid API key"):
        stranger.models.list()
    with pytest.raises(openai.AuthenticationError, match="No valid API key"):
        chat(stranger)


def test_no_key_opens_nothing(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/models", timeout=PATIENCE)
    assert caught.value.code == 401


def test_health_needs_no_key_and_metrics_do(client: openai.OpenAI, url: str) -> None:
    root = url.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/health", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"status": "ok"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{root}/metrics", timeout=PATIENCE)
    assert caught.value.code == 401

    def counted() -> dict[str, float]:
        request = urllib.request.Request(f"{root}/metrics")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.headers["content-type"].startswith("text/plain")
            lines = answer.read().decode().splitlines()
        return {k: float(v) for k, _, v in (x.rpartition(" ") for x in lines if x[0] != "#")}

    before = counted()
    chat(client)
    after = counted()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["rabbitllm_new_tokens_total"] == 7
    assert grown["rabbitllm_prompt_tokens_total"] == len(PROMPT)
    assert grown['rabbitllm_answers_total{reason="length"}'] == 1
    assert grown["rabbitllm_first_token_seconds_count"] == 1
    assert grown["rabbitllm_passes"] >= 7
    assert after["rabbitllm_waiting"] == 0


def test_an_unknown_address_is_an_error_in_the_same_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.embeddings.create(model=NAME, input="x")


# several at a time


def begin(client: openai.OpenAI) -> Any:
    """An answer that goes on for minutes, and has begun."""
    stream = chat(client, max_tokens=ENDLESS, stream=True)
    while not next(stream).choices[0].delta.content:
        pass
    return stream


def test_an_answer_comes_while_another_goes_on(
    client: openai.OpenAI, expected: Callable[[str, int], str]
) -> None:
    running = begin(client)
    assert chat(client).choices[0].message.content == expected(PROMPT, 7)
    assert next(running).choices[0].delta.content
    running.close()


def test_beyond_the_queue_is_status_429_and_leaving_frees_the_engine(
    client: openai.OpenAI, expected: Callable[[str, int], str]
) -> None:
    running = [begin(client), begin(client)]
    long = "x" * 5_000
    messages = [{"role": "user", "content": long}]
    with ThreadPoolExecutor(2) as others:
        futures = [others.submit(chat, client, messages=messages) for _ in range(2)]
        done, _ = wait(futures, PATIENCE, FIRST_COMPLETED)
        assert done, "neither was refused"
        (refused,) = done
        with pytest.raises(openai.RateLimitError, match="queue is full") as caught:
            refused.result()
        assert caught.value.response.headers["retry-after"]
        running.pop().close()  # the client leaves
        waited = next(future for future in futures if future is not refused)
        answer = waited.result().choices[0].message.content
        assert answer == expected(PROMPT.replace("Hello", long), 7)
    running.pop().close()


def test_a_client_that_gives_up_on_a_whole_answer_frees_the_engine(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.5), max_tokens=ENDLESS)
    assert chat(client).choices[0].finish_reason == "length"


# last, for it ends the server


def test_ctrl_c_ends_a_server_that_is_answering(
    client: openai.OpenAI, server: subprocess.Popen[str]
) -> None:
    running = begin(client)
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 130
    running.close()
