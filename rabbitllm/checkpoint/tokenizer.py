"""The tokenizer of a checkpoint."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.config import INVALID, read_fields
from rabbitllm.errors import CheckpointError, summary


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; of a legacy family without its authors' code, whoever is trusted.

    Raises:
        CheckpointError: there is none, its files are not what they should be, or it needs the
            authors' code, which is not trusted.
        ImportError: the library that reads them is not installed.
    """
    try:
        return _load(folder, trust_remote_code)
    except CheckpointError:
        raise
    except Exception as error:
        # The tokenizers library has no errors of its own: it raises bare Exceptions.
        if not isinstance(error, (*INVALID, OSError)) and type(error) is not Exception:
            raise
        raise CheckpointError(
            f"{folder} has no tokenizer that transformers can load: {summary(error)}"
        ) from error


def _load(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    row = legacy.row_of(read_fields(folder))
    tokenizer: PreTrainedTokenizerBase
    if row is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = row.tokenizer(folder)
    return tokenizer
