"""Clients of a server, each of which asks again when it is answered."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.askers.asked import draw_prompts, shares
from benchmarks.serving_soak.clients import NAME, Soak, head, post
from benchmarks.serving_soak.server import server

PEAK = "rabbitllm_peak_device_bytes"


@asynccontextmanager
async def serving(arguments: list[str]) -> AsyncIterator[Soak]:
    """A server with these arguments of `rabbitllm serve`, which has answered once."""
    async with server(arguments) as (port, _):
        asked = Soak(port)
        await ask(asked, [1] * 8, 2)
        yield asked


async def ask(server: Soak, prompt: Sequence[int], new_tokens: int) -> float:
    """Has one prompt of token ids answered, with so many tokens; returns the seconds it took.

    Raises:
        RuntimeError: it was not.
    """
    begun = time.perf_counter()
    body = {"model": NAME, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0}
    status, answer = await server.ask(post(body, path="/v1/completions"))
    if status != 200 or json.loads(answer)["usage"]["completion_tokens"] != new_tokens:
        raise RuntimeError(f"status {status}: {answer[:300].decode()}")
    return time.perf_counter() - begun


async def count(server: Soak) -> dict[str, float]:
    """What the server counts, by name."""
    _, text = await server.ask(head("GET /metrics"))
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if line[:1] != "#")
    return {name: float(value) for name, _, value in lines}


async def measure_clients(
    server: Soak, clients: int, requests: int, new_tokens: int, vocabulary: int
) -> dict[str, Any]:
    """Figures of so many clients, each of which makes some requests in turn."""
    prompts = draw_prompts(clients * requests, vocabulary, seed=clients)

    async def client(mine: Sequence[Sequence[int]]) -> list[float]:
        return [await ask(server, prompt, new_tokens) for prompt in mine]

    before, begun = await count(server), time.perf_counter()
    waits = await asyncio.gather(*(client(mine) for mine in shares(prompts, clients)))
    seconds = time.perf_counter() - begun
    after = await count(server)
    return {
        "clients": clients,
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": new_tokens * len(prompts),
        "seconds": seconds,
        "tokens_per_second": new_tokens * len(prompts) / seconds,
        "passes": after["rabbitllm_passes"] - before["rabbitllm_passes"],
        "median_wait": statistics.median(wait for each in waits for wait in each),
        "peak_device_bytes": after.get(PEAK),
    }
