"""How fast a plan can be, by what the roads that its weights take were measured to carry."""

from typing import NamedTuple

from rabbitllm.measure.limits import Limits
from rabbitllm.measure.roads import roads_of
from rabbitllm.streaming.plan import Plan, own_memory
from rabbitllm.streaming.sharing import seconds_of
from rabbitllm.streaming.staged import StagedModel


class Prediction(NamedTuple):
    """One token, in a batch of one.

    Attributes:
        moved: bytes that come for it: from disk, or to all devices, whichever are more.
        seconds: that it takes at least; 0 where no road was measured.
    """

    moved: int
    seconds: float


def predict(staged: StagedModel, plan: Plan, limits: Limits) -> Prediction:
    """What a token of a model takes with a plan, as each road brings its share while others do.

    Devices share the disk and the host's memory, and each has a link of its own: the one with most
    to bring decides. Of experts all that a token is sent to count: none has been kept.

    Args:
        staged: the model as it was placed.
        plan: where its weights are.
        limits: of the roads. `pinned` is of the links to all devices of the plan at once.
    """
    sizes = staged.moved_sizes
    coming = plan.coming(sizes)
    by_link = [size for device, size in coming.items() if own_memory(device) != "host"]
    read = sum(sizes[name] for name in plan.moving("disk"))
    slowest = max(by_link, default=0) * len(by_link)
    seconds = limits.seconds(read, slowest, staged.computed_bytes)
    if plan.on_host():
        roads = roads_of(next(iter(coming)), staged.dtype)
        seconds = max(seconds, seconds_of(plan, staged, roads))
    return Prediction(sum(coming.values()), seconds)
