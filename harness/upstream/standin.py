"""Classes that stand in for stock ones: the model that a test makes of one is streamed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from harness.upstream.results import Budget
from rabbitllm import AutoModel
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

SHARE = 0.5
"""Of the weights that have room in memory, at the middle budget."""
TOKENS = 2048
"""More than the tests ever compute at a time; the middle budget has room for their activations."""


class Streamer:
    """Streams the models of one test.

    Args:
        budget: for their weights.
        folder: where their checkpoints go; they are needed as long as the models are used.

    Attributes:
        models: those of the test, in the order in which it made them.
    """

    def __init__(self, budget: Budget, folder: Path) -> None:
        self.budget = budget
        self.folder = folder
        self.models: list[Any] = []

    def load(self, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Streams a copy of a checkpoint, for tests remove theirs.

        Args:
            pretrained_model_name_or_path: its folder.
            options: of `from_pretrained`, as the test gives them.
        """
        folder = self._folder()
        shutil.copytree(pretrained_model_name_or_path, folder, dirs_exist_ok=True)
        found = AutoModel.from_pretrained(folder, **self._budgets(folder, options) | options)
        model = found[0] if isinstance(found, tuple) else found
        # A streamed model refuses to save what it never has whole, and names stock's way out.
        # Tests save first and look at inference then, so they get the checkpoint that it streams.
        vars(model)["save_pretrained"] = partial(_save, model, folder)
        self.models.append(model)
        return found

    def stream(self, model: PreTrainedModel) -> Any:
        """A streamed model with the weights, the config and the settings of a stock one."""
        folder = self._folder()
        model.save_pretrained(folder)
        return self.load(
            folder,
            config=model.config,
            generation_config=model.generation_config,
            dtype=model.dtype,
        )

    def streamed_bytes(self) -> int:
        """What forwards of the test's models read from disk."""
        return sum(int(model.streaming_stats()["bytes_from_disk"]) for model in self.models)

    def _folder(self) -> Path:
        return Path(mkdtemp(dir=self.folder))

    def _budgets(self, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments that give a checkpoint the budget."""
        fixed: dict[str, Any] = {
            "device": "cpu",
            "host_memory": "min",
            "show_layer_progress": False,
        }
        if self.budget == "min":
            return fixed
        small = AutoModel.from_pretrained(folder, **fixed | options)
        small = small[0] if isinstance(small, tuple) else small
        whole = sum(weight.nbytes for weight in small.state_dict().values())
        work = Work(1, TOKENS)
        working = working_bytes(read_geometry(small.config), small.dtype, small.device, work)
        budget = working + int(SHARE * whole)
        return fixed | {"host_memory": budget, "max_seq_len": TOKENS}


def _save(model: Any, checkpoint: Path, folder: Any, **_: Any) -> None:
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


class _Streams(type):
    """The type of a class that stands in for a stock one, and makes streamed models of it."""

    stock: type[PreTrainedModel]
    streamer: Streamer

    def __call__(cls, config: PretrainedConfig, *args: Any, **kwargs: Any) -> Any:
        return cls.streamer.stream(cls.stock(config, *args, **kwargs))

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.stock)


def stand_in(stock: Any, streamer: Streamer) -> Any:
    """A class that answers as a stock one does, and whose models are streamed ones.

    Args:
        stock: a causal model's class.
        streamer: streams what is made of it.
    """

    def from_config(config: PretrainedConfig, **options: Any) -> Any:
        return streamer.stream(stock._from_config(config, **options))

    # Static methods, for the class that they would be given is this one, which is not stock's.
    own = {
        "__module__": stock.__module__,
        "from_pretrained": staticmethod(streamer.load),
        "_from_config": staticmethod(from_config),
    }
    made = _Streams(stock.__name__, (stock,), own)
    made.stock, made.streamer = stock, streamer
    return made
