"""A model without weights, and the stages that its weights come in."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from rabbitllm.checkpoint.reads import rowwise
from rabbitllm.checkpoint.tensors import WeightEntry
from rabbitllm.streaming.blocks import block_of
from rabbitllm.streaming.devices.encoded import kept_bytes, largest_unit
from rabbitllm.streaming.residents import minimum_bytes
from rabbitllm.streaming.routed import holds_experts
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import Structure
from rabbitllm.streaming.weights import Stage

ROUTES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
"""What configs call the number of experts that a token is sent to."""


@dataclass(frozen=True)
class StagedModel:
    """What a placement starts from.

    Attributes:
        structure: of the model.
        dtype: of the weights, as far as the model does not ask for float32.
        stages: all weights, as they load together; the pinned ones first.
        on_disk: name of a weight that is encoded -> bytes that it takes as it is stored.
        unit: bytes of the largest part that decodes by itself; 0 if nothing is encoded.
        rowwise: see `find_stages`.
        apart: as well.
    """

    structure: Structure
    dtype: torch.dtype
    stages: list[Stage]
    on_disk: Mapping[str, int] = field(default_factory=dict)
    unit: int = 0
    rowwise: Callable[[str, int], bool] = lambda *_: True
    apart: frozenset[str] = frozenset()

    @property
    def model(self) -> PreTrainedModel:
        """Parameters on the meta device, buffers real and on the host."""
        return self.structure.model

    def split_apart(self, apart: Collection[str]) -> "StagedModel":
        """The same with these modules, by name, as stages of their own."""
        stages = find_stages(self.structure, rowwise=self.rowwise, apart=apart)
        return replace(
            self,
            stages=[stage.stored(self.on_disk) for stage in stages],
            apart=frozenset(apart),
        )

    def stored(self, encoded: Mapping[str, WeightEntry]) -> "StagedModel":
        """The same with some weights encoded, by name."""

        def by_rows(name: str, count: int) -> bool:
            return name not in encoded or rowwise(encoded[name], count)

        on_disk = {name: kept_bytes(entry) for name, entry in encoded.items()}
        stages = find_stages(self.structure, rowwise=by_rows)
        return replace(
            self,
            stages=[stage.stored(on_disk) for stage in stages],
            on_disk=on_disk,
            unit=largest_unit(encoded.values()),
            rowwise=by_rows,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Stage name -> bytes of its buffer."""
        return {stage.name: stage.nbytes for stage in self.stages}

    @property
    def moved_sizes(self) -> dict[str, int]:
        """Stage name -> bytes that come for one token where it is away; of experts at most."""
        return {
            stage.name: self._routes(stage) * stage.stored_row_nbytes
            if stage.least_rows
            else stage.stored_nbytes
            for stage in self.stages
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(stage.nbytes for stage in self.stages)

    @property
    def pinned_nbytes(self) -> int:
        """Bytes of the weights that are resident in any case."""
        return sum(stage.nbytes for stage in self.stages if stage.pinned)

    @property
    def minimum_bytes(self) -> int:
        """The least bytes of weights on the device that the model can run with."""
        return minimum_bytes(self.stages)

    @property
    def experts_by_rows(self) -> list[str]:
        """The paths of what holds experts that come as tokens are sent to them."""
        return [stage.name for stage in self.stages if stage.least_rows]

    @property
    def experts_whole(self) -> list[str]:
        """The paths of what holds experts that all come with their layer.

        Their forward is not told which it needs, or they are stored so that none is read alone.
        """
        apart = self.experts_by_rows
        return [
            path
            for path, module in self.structure.modules.items()
            if (path in self.structure.experts or holds_experts(module))
            and not block_of(path, apart)
        ]

    @property
    def computed_bytes(self) -> float:
        """Bytes that one token is multiplied with: of experts, only those it is sent to."""
        total = 0.0
        for stage in self.stages:
            if stage.least_rows:
                share = min(1.0, self._routes(stage) / stage.rows)
                total += share * sum(weight.nbytes for weight in stage.weights)
            elif not stage.slotless:
                total += sum(weight.nbytes for weight in stage.weights)
        return total

    def _routes(self, stage: Stage) -> int:
        """How many of a stage's experts one token is sent to; all where nothing says so."""
        config = self.model.config.get_text_config()
        found = (getattr(config, name, None) for name in ROUTES)
        return next((each for each in found if type(each) is int and each > 0), stage.rows)

    def with_fewest_rows(self) -> "StagedModel":
        """The same with room for the experts of one token at a time, not for all of a layer's."""
        stages = [
            replace(stage, least_rows=min(stage.least_rows, self._routes(stage)))
            if stage.least_rows
            else stage
            for stage in self.stages
        ]
        return replace(self, stages=stages)

    def with_largest_split(self) -> "StagedModel | None":
        """The same with the largest blocks split into their children; None if none can be."""
        blocks = [
            sum(weight.nbytes for weight in stage.weights)  # without the padding of `stage.nbytes`
            for stage in self.stages
            if not stage.pinned
            and not stage.least_rows
            and any(list(module.children()) for module in stage.modules)
        ]
        if not blocks:
            return None
        limit = max(blocks) - 1
        stages = find_stages(self.structure, limit, self.rowwise, self.apart)
        least = {stage.name: stage.least_rows for stage in self.stages}
        return replace(
            self,
            stages=[
                replace(stage.stored(self.on_disk), least_rows=least.get(stage.name, 0))
                for stage in stages
            ],
        )
