"""A published checkpoint as references read it: fields of config.json, weights by their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.measuring.weights import load_weights, weight_files


@dataclass(frozen=True)
class Checkpoint:
    """What a reference computes with.

    Attributes:
        config: the fields of config.json.
        weights: by their published keys, in float32.
        steps: gets every projection's key, what goes into it and what comes out, unless None.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    steps: list[tuple[str, Tensor, Tensor]] | None = None

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Reads config.json and every weight file of a folder."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        weights = {
            key: tensor.float()
            for path in weight_files(folder)
            for key, tensor in load_weights(path).items()
        }
        return cls(config, weights)

    def assuming(self, **fields: Any) -> Checkpoint:
        """The same checkpoint, with values for the fields that config.json does not state."""
        return replace(self, config=fields | dict(self.config))

    def part(self, field: str, prefix: str) -> Checkpoint:
        """A model inside: the config in a field, and the weights whose keys have a prefix."""
        inside = {
            key.removeprefix(prefix): weight
            for key, weight in self.weights.items()
            if key.startswith(prefix)
        }
        return replace(self, config=self.config[field], weights=inside)

    def __getitem__(self, key: str) -> Tensor:
        return self.weights[key]

    def linear(self, key: str, x: Tensor) -> Tensor:
        """A projection by its key, [..., in] -> [..., out]; with a bias if there is one."""
        y: Tensor = linear(x, self[f"{key}.weight"], self.weights.get(f"{key}.bias"))
        if self.steps is not None:
            self.steps.append((key, x, y))
        return y

    def rms_norm(self, key: str, x: Tensor) -> Tensor:
        """A norm by its key, with the config's `rms_norm_eps`, see `rms_norm`."""
        return rms_norm(x, self.config["rms_norm_eps"]) * self[f"{key}.weight"]

    @property
    def head_dim(self) -> int:
        """Entries of a head; `hidden_size / num_attention_heads` unless the config states them."""
        shared = self.config["hidden_size"] // self.config["num_attention_heads"]
        return int(self.config.get("head_dim") or shared)


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    """By the root of the mean square in the last dimension: https://arxiv.org/abs/1910.07467."""
    scale: Tensor = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return x * scale
