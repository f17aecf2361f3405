"""Many clients at one server, half of them misbehaving: what it answers, and what it keeps.

    python -m benchmarks.serving_soak MODEL

Every other request is a good one, whose answer must be the one that a lone client got. The others
come from `misdeeds`. Memory, threads and descriptors of the server are counted before, after
`EARLY` of the requests, and at the end.

Memory grows until as many sequences have shared passes as ever do, with whatever lengths: a pass of
64 takes other blocks from the allocator than one, and glibc keeps what lies between others. From
there on it does not. SmolLM2-135M on two cores: 737 MiB before, 1,001 after 171 requests of 64
clients, 1,009 after 1,004; 811 in the same passes where glibc gives blocks of 64 KiB back at once
(MALLOC_MMAP_THRESHOLD_=65536), 987 with a single arena. A toy model, which does many more in the
time: 467 MiB after 916 requests, 463 after 12,004. So a server that keeps something of each request
is seen by `MORE`.
"""

import argparse
import asyncio
import time
from collections.abc import Callable

from benchmarks.serving_soak.clients import Soak
from benchmarks.serving_soak.misdeeds import MISDEEDS, misbehave
from benchmarks.serving_soak.server import count, server, settled

EARLY = 0.3
"""Of the requests: behind them all clients have met, and memory should stay as it is."""
MORE = 0.1
"""Of that memory, that the server may have come to hold at the end."""
MEMORY = "RSS MiB"


async def run(
    soak: Soak, requests: int, clients: int, early: Callable[[], None] = lambda: None
) -> None:
    """Sends the requests, by as many clients at once.

    Args:
        soak: what they are sent to.
        requests: good and bad ones.
        clients: at once.
        early: called before the one at `EARLY` of them.
    """
    expected = await soak.good()
    names = list(MISDEEDS)
    turns = iter(range(requests))

    async def client() -> None:
        for turn in turns:
            if turn == int(EARLY * requests):
                early()
            if turn % 2:
                await misbehave(soak, names[turn // 2 % len(names)])
            else:
                await soak.good(expected)

    listing = asyncio.create_task(soak.list_models())
    await asyncio.gather(*(client() for _ in range(clients)))
    listing.cancel()


async def soak(arguments: list[str], requests: int, clients: int) -> Soak:
    """Runs everything.

    Args:
        arguments: of `rabbitllm serve`.
        requests: how many, good and bad.
        clients: how many at once.
    """
    async with server(arguments) as (port, process):
        soaked = Soak(port)
        for _ in range(3):  # so that what is made at first use is there
            await soaked.good()
        soaked.before = count(process)

        def early() -> None:
            soaked.early = count(process)

        begun = time.perf_counter()
        await run(soaked, requests, clients, early)
        soaked.elapsed = time.perf_counter() - begun
        soaked.after = await settled(process, soaked.before)
        for writer in soaked.left:
            writer.close()
        begun = time.perf_counter()
    soaked.ending = time.perf_counter() - begun
    return soaked


def growth(soaked: Soak) -> list[str]:
    """What is wrong with how much memory the server came to hold; nothing as a rule."""
    early, after = soaked.early[MEMORY], soaked.after[MEMORY]
    if after <= (1 + MORE) * early:
        return []
    return [f"the server held {early:.0f} MiB after {EARLY:.0%} of the requests, then {after:.0f}"]


def report(soaked: Soak) -> str:
    """The figures, a line each."""
    listing = sorted(soaked.listing)
    return "\n".join(
        [
            f"{sum(soaked.statuses.values())} requests in {soaked.elapsed:.1f} s",
            *(f"{n} times {status}: {name}" for (name, status), n in soaked.statuses.items()),
            f"good answers: slowest {max(soaked.seconds):.2f} s",
            f"/v1/models: {len(listing)} times, median {listing[len(listing) // 2] * 1e3:.0f} ms, "
            f"slowest {listing[-1] * 1e3:.0f} ms",
            *(
                f"{name}: {n:.0f} before, {soaked.early[name]:.0f} after {EARLY:.0%}, "
                f"{soaked.after[name]:.0f} after all"
                for name, n in soaked.before.items()
            ),
            f"SIGTERM: ended after {soaked.ending:.1f} s",
            *(f"WRONG: {line}" for line in soaked.wrong),
        ]
    )


def main() -> int:
    """Runs the soak; status 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_soak", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=1_000, help="good and bad (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at once (%(default)s)")
    parser.add_argument("serve", nargs="+", help="MODEL and other arguments of `rabbitllm serve`")
    arguments, more = parser.parse_known_args()
    soaked = asyncio.run(soak(arguments.serve + more, arguments.requests, arguments.clients))
    soaked.wrong += growth(soaked)
    print(report(soaked))
    return bool(soaked.wrong)
