"""References for families without a class in transformers: a tiny checkpoint, and its forward.

A checkpoint has the layout and config.json that its authors publish; the forward is written from
the architecture's definition. Neither knows transformers or the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.measuring.references import baichuan, chatglm, internlm, qwen
from harness.measuring.references.common import Decoder


@dataclass(frozen=True)
class Original:
    """One architecture.

    Attributes:
        write: `write(folder, seed)` makes a tiny checkpoint.
        reference: `reference(folder)` reads one, and is called with `input_ids` [B, S] and
            optionally `attention_mask` [B, S]; it returns float32 logits [B, S, V].
    """

    write: Callable[[Path, int], None]
    reference: Callable[[Path], Decoder]


REFERENCES = {
    "internlm": Original(internlm.write_1, internlm.Reference),
    "internlm2": Original(internlm.write_2, internlm.Reference2),
    "internlm3": Original(internlm.write_3, internlm.Reference),
    "baichuan-7b": Original(baichuan.write_7b, baichuan.Reference),
    "baichuan2-7b": Original(baichuan.write_2_7b, baichuan.NormalisedHead),
    "baichuan-13b": Original(baichuan.write_13b, baichuan.Alibi),
    "baichuan2-13b": Original(baichuan.write_2_13b, baichuan.NormalisedHeadAlibi),
    "qwen": Original(qwen.write, qwen.Reference),
    "chatglm2": Original(chatglm.write_2, chatglm.Reference2),
    "chatglm2-32k": Original(chatglm.write_2_32k, chatglm.Reference2),
    "chatglm3": Original(chatglm.write_3, chatglm.Reference),
}
"""By the id of the matrix row."""
