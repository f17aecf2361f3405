"""Many clients at one server, half of them misbehaving: what it answers, and what it keeps.

    python -m benchmarks.serving_soak MODEL

Every other request is a good one, whose answer must be the one that a lone client got. The others
come from `misdeeds`. Memory, threads and descriptors of the server are counted before and after.
"""

import argparse
import asyncio
import time

from benchmarks.serving_soak.clients import Soak
from benchmarks.serving_soak.misdeeds import MISDEEDS, misbehave
from benchmarks.serving_soak.server import count, server, settled


async def run(soak: Soak, requests: int, clients: int) -> None:
    """Sends the requests, by as many clients at once."""
    expected = await soak.good()
    names = list(MISDEEDS)
    turns = iter(range(requests))

    async def client() -> None:
        for turn in turns:
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
        begun = time.perf_counter()
        await run(soaked, requests, clients)
        soaked.elapsed = time.perf_counter() - begun
        soaked.after = await settled(process, soaked.before)
        for writer in soaked.left:
            writer.close()
        begun = time.perf_counter()
    soaked.ending = time.perf_counter() - begun
    return soaked


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
                f"{name}: {n:.0f} before, {soaked.after[name]:.0f} after"
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
    print(report(soaked))
    return bool(soaked.wrong)
