"""A model without weights, and the stages that its weights come in."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from rabbitllm.checkpoint.tensors import WeightEntry
from rabbitllm.streaming.devices.encoded import kept_bytes, largest_unit
from rabbitllm.streaming.plan import minimum_bytes
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.weights import Stage


@dataclass(frozen=True)
class StagedModel:
    """What a placement starts from.

    Attributes:
        model: parameters on the meta device, buffers real and on the host.
        dtype: of the weights, as far as the model does not ask for float32.
        dtypes: parameter or persistent buffer -> its dtype.
        tied: name -> the name of the parameter that it shares its values with.
        stages: all weights, as they load together; the pinned ones first.
        on_disk: name of a weight that is encoded -> bytes that it takes as it is stored.
        unit: bytes of the largest part that decodes by itself; 0 if nothing is encoded.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype]
    tied: Mapping[str, str]
    stages: list[Stage]
    on_disk: Mapping[str, int] = field(default_factory=dict)
    unit: int = 0

    def stored(self, encoded: Mapping[str, WeightEntry]) -> "StagedModel":
        """The same with some weights encoded, by name."""
        on_disk = {name: kept_bytes(entry) for name, entry in encoded.items()}
        stages = [stage.stored(on_disk) for stage in self.stages]
        return replace(self, stages=stages, on_disk=on_disk, unit=largest_unit(encoded.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Stage name -> bytes of its buffer."""
        return {stage.name: stage.nbytes for stage in self.stages}

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
    def computed_bytes(self) -> float:
        """Bytes that one token is multiplied with: of experts, only those it is sent to."""
        active = self.model.config.get_text_config().to_dict().get("num_experts_per_tok")
        total = 0.0
        for stage in self.stages:
            for weight in () if stage.slotless else stage.weights:
                share = 1.0
                if active and ".experts." in weight.name:
                    share = min(1.0, active / weight.shape[0])
                total += share * weight.nbytes
        return total

    def with_largest_split(self) -> "StagedModel | None":
        """The same with the largest blocks split into their children; None if none can be."""
        blocks = [
            sum(weight.nbytes for weight in stage.weights)  # without the padding of `stage.nbytes`
            for stage in self.stages
            if not stage.pinned and any(list(module.children()) for module in stage.modules)
        ]
        if not blocks:
            return None
        stages = find_stages(self.model, self.tied, self.dtypes, max(blocks) - 1)
        return replace(self, stages=[stage.stored(self.on_disk) for stage in stages])
