"""What a streamed model adds to the stock transformers class that it is an instance of."""

import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from typing_extensions import Self, override

from rabbitllm.checkpoint.tokenizer import load_tokenizer
from rabbitllm.drafting import head_bytes
from rabbitllm.streaming.kept import borrow, keep
from rabbitllm.streaming.meter import Limits
from rabbitllm.streaming.offloaded import keep_in_order
from rabbitllm.streaming.pipeline import Pipeline
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.room import Rooms
from rabbitllm.streaming.working import Work

if TYPE_CHECKING:
    # At run time the stock class comes in by `streamed_class`; a type checker sees what every one
    # of them has.
    class _Stock(PreTrainedModel, GenerationMixin): ...
else:
    _Stock = object


CHECKPOINT = "_gradient_checkpointing_func"
"""The attribute in which transformers tells a layer how to be checkpointed."""


class StreamedModel(_Stock):
    """RabbitLLM's part of a streamed model; forward, caches and `generate` are transformers'.

    Attributes:
        streaming_plan: which stage lives on the device, in host memory, or on disk.
        checkpoint_folder: the folder that config and tokenizer come from.
    """

    streaming_plan: Plan
    checkpoint_folder: Path
    _streaming_device: torch.device
    _pipeline: Pipeline
    _moved_sizes: Mapping[str, int]
    _rooms: Rooms
    _trust_remote_code: bool
    _loaded: "weakref.WeakSet[nn.Module]"

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Makes instances of `streamed_class` only.

        Raises:
            TypeError: the class is a family's own, which loaded models up to release 1.1.
        """
        if not issubclass(cls, PreTrainedModel):
            raise TypeError(
                f"{cls.__name__} only says of which family a model is. Load it with "
                "AutoModel.from_pretrained."
            )
        return super().__new__(cls)

    def attach(
        self,
        plan: Plan,
        pipeline: Pipeline,
        rooms: Rooms,
        folder: Path,
        device: torch.device,
        trust_remote_code: bool,
        moved_sizes: Mapping[str, int],
    ) -> None:
        """Records how the model streams, once it has been started."""
        self.streaming_plan = plan
        self.checkpoint_folder = folder
        self._pipeline = pipeline
        self._rooms = rooms
        self._streaming_device = device
        self._trust_remote_code = trust_remote_code
        self._moved_sizes = moved_sizes  # see `StagedModel`
        self._loaded = weakref.WeakSet(self.modules())
        if len(plan.device_bytes) > 1:  # by which transformers and peft know that there are several
            modules = dict(self.named_modules())
            self.hf_device_map = {
                name: place.device for name, place in plan.places.items() if name in modules
            }

    @property
    def device(self) -> torch.device:
        """The device that the model computes on, and inputs belong on; weights may be elsewhere."""
        return self._streaming_device

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, loaded at first use.

        Raises:
            CheckpointError: the checkpoint has none, a malformed one, or one whose code would have
                to be trusted.
            ImportError: the library that reads it is not installed.
        """
        return load_tokenizer(self.checkpoint_folder, self._trust_remote_code)

    @property
    def active_attention_implementation(self) -> str:
        """What the model really runs: "flash_attention_2", "sdpa", "eager" or another backend."""
        return str(self.config._attn_implementation)

    @override
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Stock's `generate`; a prompt that needs more memory than there is comes in chunks.

        Raises:
            BudgetError: it needs more memory than there is even so, or a multi-token head does that
                `use_mtp` asks for.
            ValueError: as stock's, or that head is quantised.
        """
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        chosen = [kwargs, vars(generation_config or self.generation_config)]

        def option(name: str) -> Any:
            return next((each[name] for each in chosen if each.get(name) is not None), None)

        continued = any(hasattr(value, "get_seq_length") for value in kwargs.values())
        cached = option("use_cache") is not False and not self._is_stateful
        if (
            isinstance(ids, torch.Tensor)
            and ids.dim() == 2
            and option("prefill_chunk_size") is None
            and not option("use_mtp")  # which wants the hidden states of all of it
            and cached
            and not continued
        ):
            copies = max(option("num_beams") or 1, option("num_return_sequences") or 1)
            new = ids.shape[1]
            logits = 1 if "logits_to_keep" in inspect.signature(self.forward).parameters else new
            offloaded = option("cache_implementation") == "offloaded"
            work = Work(ids.shape[0] * copies, new, logits=logits, offloaded=offloaded)
            if chunk := self._rooms.chunk(work):
                kwargs["prefill_chunk_size"] = chunk
        drafting: AbstractContextManager[None] = nullcontext()
        if option("use_mtp"):
            size = head_bytes(self, self.checkpoint_folder)
            drafting = self._rooms.without(size, "The multi-token head of use_mtp")
        with drafting:
            return super().generate(inputs, generation_config, *args, **kwargs)

    def weights(self, *names: str) -> "AbstractContextManager[None]":
        """Has streamed weights in memory for the time of a `with`, to read them.

        What is changed meanwhile, or assigned in their place, stays as if by `keep_weights`.

            with model.weights("lm_head"):
                logits = hidden @ model.lm_head.weight.T

        Args:
            names: of weights, or of modules: then of all weights inside; none for the whole model.

        Raises:
            ValueError: the model has nothing of a name.
        """
        return borrow(self, names)

    def keep_weights(self, *names: str) -> None:
        """Brings streamed weights into memory for good: ordinary parameters, beyond the budget.

        They can be changed then, merged with an adapter or trained, and are no longer read from the
        checkpoint.

        Args:
            names: of weights, or of modules: then of all weights inside; none for the whole model.

        Raises:
            ValueError: the model has nothing of a name.
        """
        keep(self, names)

    @override
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Stock's: embedding and head stay in memory from then on, beyond the budget."""
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            ends = {self.get_input_embeddings(), self.get_output_embeddings()}
            keep(self, [name for name, module in self.named_modules() if module in ends])
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        for module in self.modules():
            if checkpoint := vars(module).get(CHECKPOINT):
                setattr(module, CHECKPOINT, self._pipeline.recompute(module, checkpoint))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuses to be pickled or copied: threads and open files are parts of it.

        Raises:
            TypeError: always; the message says what to do instead.
        """
        raise TypeError(
            "A streamed model cannot be pickled, copied or saved whole: its weights stay where "
            f"they are. Load {self.name_or_path} again with AutoModel.from_pretrained where you "
            "need it; model.state_dict() has the weights."
        )

    @override
    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: the weights never are in memory all at once.

        Raises:
            RuntimeError: always; the message says what to do instead.
        """
        raise RuntimeError(
            "A streamed model cannot be saved, for its weights stay on disk. Copy "
            f"{self.name_or_path}, or load it with stock transformers. An adapter's own "
            "save_pretrained works."
        )

    @override
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # All of `to`, `cuda`, `half` and their like end here. What changes nothing is allowed and
        # reaches only what was added since loading, such as adapters: stock models cast even the
        # rotary frequencies.
        here = torch.empty(0, dtype=self.dtype, device=self.device)
        there = fn(here)
        if (there.device, there.dtype) != (here.device, here.dtype):
            raise RuntimeError(
                f"A streamed model stays on {here.device} in {here.dtype}. To have it elsewhere, "
                "pass device= or dtype= to AutoModel.from_pretrained."
            )
        for module in self.modules() if recurse else ():
            if module not in self._loaded:
                nn.Module._apply(module, fn, recurse=False)
        return self

    def streaming_stats(self, limits: Limits | None = None) -> dict[str, Any]:
        """What was moved, waited for and computed since loading, and how fast.

        See `rabbitllm.streaming.meter.Stats` for the names and units. On CUDA it waits for what is
        launched.

        Args:
            limits: of this machine, from `rabbitllm.measure.limits.measure_limits`: to know what
                share of them was reached.
        """
        meter = self._pipeline.meter
        meter.settle(wait=True)
        return meter.stats.figures(limits)


def _refuse_tracing() -> None:
    """Refuses to become a part of a program: that would hold what is in memory by chance.

    Raises:
        RuntimeError: the forward is being exported or traced.
    """
    # torch before 2.7 does not say that it exports, and fails at the first weight that is away.
    exporting = hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
    if exporting or torch._C._is_tracing():
        raise RuntimeError(
            "A streamed model cannot be exported or traced: its weights come and go while it runs. "
            "Load it with stock transformers for that."
        )


def _forward_of(stock: type[PreTrainedModel]) -> Callable[..., Any]:
    """The forward of a stock class, run by the pipeline; transformers asks for its arguments."""

    @wraps(stock.forward)
    def forward(self: StreamedModel, *args: Any, **kwargs: Any) -> Any:
        _refuse_tracing()
        keep_in_order(kwargs.values())
        return self._pipeline.run(partial(stock.forward, self), args, kwargs)

    return forward


_CLASSES: dict[tuple[type, type], type[StreamedModel]] = {}


def streamed_class(
    family: type[StreamedModel], stock: type[PreTrainedModel]
) -> type[StreamedModel]:
    """The class that is both: a model of `stock`, and a `family`. The same one at every call.

    It keeps the stock name and module: transformers looks both up (conversion mappings, pipelines,
    supported attention backends).
    """
    key = (family, stock)
    if key not in _CLASSES:
        namespace = {
            "__module__": stock.__module__,
            "__doc__": stock.__doc__,
            "forward": _forward_of(stock),
        }
        _CLASSES[key] = type(stock.__name__, key, namespace)
    return _CLASSES[key]
