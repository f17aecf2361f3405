"""Architectures of transformers that some authors publish under another name.

https://huggingface.co/moonshotai/Kimi-K2-Base (DeepSeek-V3), BAAI/Aquila-7B and xverse/XVERSE-7B
(Llama): config.json and the modeling files beside it, whose fields and keys are the native ones.
"""

from collections.abc import Mapping
from typing import Any

ABOUT = frozenset(
    {"_name_or_path", "architectures", "auto_map", "model_type", "transformers_version"}
)
"""Fields that are about a checkpoint, not of its model."""


def config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of config.json, which the native class has under the same names."""
    return {name: value for name, value in fields.items() if name not in ABOUT}
