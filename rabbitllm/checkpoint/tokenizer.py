"""The tokenizer of a checkpoint."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.config import INVALID, read_fields
from rabbitllm.checkpoint.plain_json import MALFORMED, read_settings
from rabbitllm.errors import CheckpointError, summary

PROCESSOR_TEMPLATE = "chat_template.json"
"""Where models of text and pictures have their chat template if the tokenizer's files have none."""


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
    if not tokenizer.chat_template and (folder / PROCESSOR_TEMPLATE).is_file():
        tokenizer.chat_template = _processor_template(folder / PROCESSOR_TEMPLATE)
    return tokenizer


def _processor_template(path: Path) -> str:
    """The chat template that only a processor would read.

    Raises:
        CheckpointError: the file holds none.
    """
    try:
        template = read_settings(path)["chat_template"]
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(f"{path} holds no chat template: {summary(error)}.") from error
    if not isinstance(template, str):
        raise CheckpointError(f"{path} holds a chat template that is no text.")
    return template
