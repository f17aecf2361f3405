"""What computing takes beside the weights, estimated from a model's config."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.plan import own_memory

FLOAT = torch.float32.itemsize
HOLES = 1.2
"""What allocators take for what is asked of them: freed memory of another size is kept, unused."""
TURNS = 2
"""Layers whose part of an offloaded cache is on the device: the next one comes ahead."""
FUSED = {"silu", "swish", "gelu", "relu", "gelu_pytorch_tanh"}
"""Activations that torch computes in one step. The others, in several, leave intermediates."""


@dataclass(frozen=True)
class Work:
    """What a forward is given.

    Attributes:
        sequences: rows of the batch.
        new: tokens of each in this forward.
        past: tokens of each that the cache holds already.
        logits: positions of each whose logits are asked for.
        scored: the loss of these is asked for as well.
        offloaded: the cache lies in host memory. On the device are the part of the layer that
            computes, that of the next one, and what slides.
    """

    sequences: int
    new: int
    past: int = 0
    logits: int = 1
    scored: bool = False
    offloaded: bool = False

    def cut(self, new: int) -> "Work":
        """The last and largest forward of the same work, if it is done `new` tokens at a time."""
        new = min(new, self.new)
        logits = min(self.logits, new)
        return replace(self, new=new, past=self.past + self.new - new, logits=logits)


@dataclass(frozen=True)
class Geometry:
    """A model's widths, as far as memory depends on them. Elements of one token, or counts.

    Attributes:
        config: they were read from; the attention's implementation may change in it.
        hidden: of a hidden state.
        vocabulary: of the logits.
        heads: of attention.
        width: of all heads' queries, or values if these are wider.
        kept: of the keys and values that one layer caches.
        values: of the values alone.
        mlp: of the intermediates of the largest MLP.
        windows: the most tokens that each layer caches; 0 if it caches all.
        capped: the logits are bent to stay below a cap, in steps.
    """

    config: Any
    hidden: int
    vocabulary: int
    heads: int
    width: int
    kept: int
    values: int
    mlp: int
    windows: tuple[int, ...]
    capped: bool

    @property
    def eager(self) -> bool:
        """Attention computes all scores, one step after the other."""
        return getattr(self.config, "_attn_implementation", None) == "eager"

    @property
    def narrow(self) -> bool:
        """Values are narrower than keys."""
        return 2 * self.values < self.kept

    def cached(self, work: Work) -> int:
        """Elements of the cache that are on the device, behind that work."""
        tokens = work.new + work.past
        whole = self.windows.count(0)
        there = tokens * (min(whole, TURNS) if work.offloaded else whole)
        sliding = (min(window, tokens) for window in self.windows if window)
        return work.sequences * (there + sum(sliding)) * self.kept

    def only(self, mine: Sequence[bool]) -> "Geometry":
        """The same with some layers' caches alone.

        Args:
            mine: whether it is one of these, for each block of the model. If these are not the
                layers that cache, all caches count.
        """
        if len(mine) != len(self.windows):
            return self
        pairs = zip(self.windows, mine, strict=True)
        return replace(self, windows=tuple(window for window, counts in pairs if counts))

    def masked(self, work: Work) -> bool:
        """Whether a causal pattern is not enough: padding, tokens behind others, a window."""
        slides = any(0 < window < work.new + work.past for window in self.windows)
        return work.new > 1 and (work.sequences > 1 or work.past > 0 or slides)


def read_geometry(config: Any) -> Geometry:
    """The geometry of a model with that config; what it leaves out is taken as Llama has it."""
    text = config.get_text_config()
    hidden, heads = _number(text, "hidden_size"), _number(text, "num_attention_heads") or 1
    keys = _number(text, "qk_nope_head_dim") + _number(text, "qk_rope_head_dim")
    keys = max(keys, _number(text, "head_dim") or hidden // heads)
    values = _number(text, "v_head_dim") or keys
    layers = _number(text, "num_hidden_layers") or 1
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    window = _number(text, "sliding_window")
    cached_heads = _number(text, "num_key_value_heads") or heads
    return Geometry(
        config=config,
        hidden=hidden,
        vocabulary=_number(text, "vocab_size"),
        heads=heads,
        width=heads * max(keys, values),
        kept=cached_heads * (keys + values),
        values=cached_heads * values,
        mlp=_mlp(text, hidden),
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        capped=bool(getattr(text, "final_logit_softcapping", None)),
    )


def working_bytes(geometry: Geometry, dtype: torch.dtype, device: torch.device, work: Work) -> int:
    """Bytes that a forward needs beside the weights, those the cache has taken already included.

    The sum of what follows, for B sequences of T new tokens and S tokens in all. Elements are of
    `dtype` where nothing else is said.

    - the cache: what each layer keeps of each token, of the window's tokens if it slides;
    - a workspace, and on CUDA what the process takes outside of the allocator;

    and, a fifth more for the allocator's holes:

    - the cache's growth: one layer's keys and values, which are copied into a longer place;
    - four hidden states of the new tokens, and two of a norm in float32;
    - attention's masks, B x T x S, where there are any;
    - one layer's MLP or attention, whichever is larger. An MLP is three intermediates of the new
      tokens, six where the activation is none of FUSED, or the rows that are sent to experts with
      theirs. Attention is seven projections of a query's width with the keys and values; these
      repeated for all heads, over all S tokens; and, if it is eager, the scores, B x heads x T x S,
      as they are and as softmax's float32 input and output. sdpa on CPU takes such steps, too,
      where values are narrower than keys;
    - the logits that are asked for, with their hidden state, three times if they are capped, and
      twice in float32 if their loss is asked for; those of one position in float32 as
      sampling takes them, four times;
    - the head's weight, as often as a CPU copies it.

    Measured on CPU against stock's peaks, each allocation having pages of its own (llama, gemma 3,
    mixtral, qwen3 MoE, deepseek v3 and gpt2; prompts and batches of 800 to 6,000 tokens, peaks of
    40 to 1,200 MiB, float32 and bfloat16), this is 1.1 to 2 times the peak without the workspace.
    """
    kind = DEVICES[device.type]
    cache = geometry.cached(work) * dtype.itemsize
    return cache + passing_bytes(geometry, dtype, device, work) + kind.outside + kind.workspace


def passing_bytes(
    geometry: Geometry,
    dtype: torch.dtype,
    device: torch.device,
    work: Work,
    reused: Callable[[Iterable[int]], int] = max,
) -> int:
    """Bytes of `working_bytes` that are taken for a while, one layer's after the other's.

    Args:
        geometry: of the model.
        dtype: of its hidden states.
        device: that computes.
        work: of the forward.
        reused: `max` where a layer's MLP takes what its attention has freed, `sum` where not.
    """
    new, total = work.sequences * work.new, work.sequences * (work.new + work.past)
    on_host = own_memory(device) == "host"
    stepwise = geometry.eager or (geometry.narrow and on_host)
    repeated = 2 * geometry.width if stepwise or 2 * geometry.width > geometry.kept else 0
    logits = work.sequences * work.logits * geometry.vocabulary
    asked = logits * (3 if geometry.capped else 1) + work.sequences * work.logits * geometry.hidden
    sampled = work.sequences * geometry.vocabulary
    floats = 2 * new * geometry.hidden + 4 * sampled + (2 * logits if work.scored else 0)
    copies = _head_copies(dtype, work) if on_host else 0
    head = copies * geometry.vocabulary * geometry.hidden
    pairs = new * (work.new + work.past)
    score = geometry.heads * (dtype.itemsize + 2 * FLOAT) if stepwise else 0
    mask = dtype.itemsize + 3 if stepwise or geometry.masked(work) else 0
    projected = new * (7 * geometry.width + geometry.kept) + total * repeated
    attention = projected * dtype.itemsize + pairs * score
    mlp = new * geometry.mlp * dtype.itemsize
    always = total * geometry.kept + new * 4 * geometry.hidden + asked + head
    passing = reused((attention, mlp)) + always * dtype.itemsize + floats * FLOAT + pairs * mask
    return int(HOLES * passing)


def taken_bytes(geometry: Geometry, dtype: torch.dtype, device: torch.device, work: Work) -> int:
    """Bytes of `working_bytes` that are taken before the forward begins: the cache so far."""
    cache = geometry.cached(replace(work, new=0)) * dtype.itemsize
    return cache + DEVICES[device.type].outside


def _head_copies(dtype: torch.dtype, work: Work) -> int:
    """How often a CPU copies the head's weight.

    In 16 bits once for each sequence, where the last of the hidden states are a view of them all:
    torch 2.13 takes that for a batch of products. See `keep_rows_single` for the one exception.
    """
    single = work.sequences * work.logits == 1 and dtype == torch.bfloat16
    view = work.logits < work.new and dtype.itemsize < FLOAT
    return work.sequences if view and not single else 0


def _mlp(text: Any, hidden: int) -> int:
    """Elements that a token's way through the largest MLP takes."""
    intermediate = _number(text, "intermediate_size") or 4 * hidden
    names = ("hidden_act", "hidden_activation", "activation_function")
    fused = FUSED & {getattr(text, name, None) for name in names}
    routes = max(_number(text, "num_experts_per_tok"), _number(text, "top_k_experts"))
    expert = _number(text, "moe_intermediate_size") or intermediate
    return max((3 if fused else 6) * intermediate, routes * (2 * hidden + 4 * expert))


def _number(config: Any, name: str) -> int:
    """A number of the config, the largest if it holds one for each layer, 0 if it has none."""
    try:
        value = getattr(config, name)
    except (AttributeError, RuntimeError):  # some configs raise for what layers do not share
        return 0
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)
