"""The tokenizer of a checkpoint."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.config import read_fields


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; of a legacy family without its authors' code, whoever is trusted.

    Raises:
        CheckpointError: a legacy family's file is missing or not what it should be.
        ImportError: the library that reads that file is not installed.
        OSError: there is no tokenizer.
    """
    row = legacy.row_of(read_fields(folder))
    tokenizer: PreTrainedTokenizerBase
    if row is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = row.tokenizer(folder)
    return tokenizer
