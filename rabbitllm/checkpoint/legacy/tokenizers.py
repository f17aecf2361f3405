"""Tokenizers of families whose own tokenizer class is code in the checkpoint."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AddedToken,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from rabbitllm.checkpoint.plain_json import MALFORMED, read_settings
from rabbitllm.errors import CheckpointError, summary

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{n}|>" for n in range(205)),
)
"""In the order of their ids, which follow those of the ranks: Qwen/Qwen-7B tokenization_qwen.py."""
CHATGLM_SPECIAL = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
"""In the order of their ids, which follow those of the pieces; ChatGLM2 has the first five.
THUDM/chatglm3-6b, tokenization_chatglm.py."""

KIMI_RESERVED = 256
"""Ids behind those of the ranks: moonshotai/Kimi-K2-Instruct, tokenization_kimi.py."""
KIMI_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_UPPER, _LOWER = (
    rf"[{cases}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for cases in (r"\p{Lu}\p{Lt}", r"\p{Ll}")
)
_WORD = r"[^\r\n\p{L}\p{N}]?"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_SPLIT = "|".join(
    (
        r"[\p{Han}]+",
        f"{_WORD}{_UPPER}*{_LOWER}+{_ENDING}",
        f"{_WORD}{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How text is cut before the merges: runs of Chinese, words by their capitals, digits by three."""


class SentencePieceTokenizer(SentencePieceBackend):
    """A sentencepiece model as it is, and Llama's beginning of a sequence unless turned off.

    Tokens to which tokenizer_config.json gives the id of a piece take that piece's place: InternLM2
    names unused pieces so.
    """

    padding_side = "left"
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012  # as transformers has it

    def __init__(
        self,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids with the beginning and end of a sequence, as far as those are wanted."""
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        second = [*bos, *token_ids_1, *eos] if token_ids_1 else []
        return [*bos, *token_ids_0, *eos, *second]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces, those of single bytes included."""
        return str(self.sp_model.decode_pieces(tokens))


class ChatGLMTokenizer(SentencePieceTokenizer):
    """A sentencepiece model with special tokens behind its pieces; sequences begin [gMASK] sop.

    The special tokens have ids but are not looked for in a text, where "sop" is part of words; the
    roles are, because nobody writes "<|user|>" for anything else.
    """

    def __init__(
        self,
        vocab_file: str,
        pad_token: Any = "<unk>",
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **kwargs: Any,
    ) -> None:
        beyond = enumerate(CHATGLM_SPECIAL, start=_pieces(Path(vocab_file)))
        roles = {
            index: AddedToken(token, normalized=False, special=True)
            for index, token in beyond
            if token.startswith("<|")
        }
        super().__init__(
            vocab_file=vocab_file,
            pad_token=pad_token,
            added_tokens_decoder=roles | (added_tokens_decoder or {}),
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens."""
        return int(self.sp_model.get_piece_size()) + len(CHATGLM_SPECIAL)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of one or two texts behind [gMASK] sop."""
        start = [self._convert_token_to_id(token) for token in ("[gMASK]", "sop")]
        return [*start, *token_ids_0, *(token_ids_1 or [])]

    def _convert_token_to_id(self, token: str) -> int:
        if token in CHATGLM_SPECIAL:
            return int(self.sp_model.get_piece_size()) + CHATGLM_SPECIAL.index(token)
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        beyond = index - self.sp_model.get_piece_size()
        return CHATGLM_SPECIAL[beyond] if beyond >= 0 else str(self.sp_model.id_to_piece(index))


def sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    """Reads tokenizer.model as InternLM and Baichuan do."""
    return _sentencepiece(SentencePieceTokenizer, folder)


def chatglm(folder: Path) -> PreTrainedTokenizerBase:
    """Reads tokenizer.model as ChatGLM2 and ChatGLM3 do; GLM-4's file of that name is another."""
    return _sentencepiece(ChatGLMTokenizer, folder)


def tiktoken(folder: Path) -> PreTrainedTokenizerBase:
    """Reads qwen.tiktoken; normal form and pattern are those of Qwen2."""
    file = folder / "qwen.tiktoken"
    _require(file, "tiktoken")
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(file))
    vocab |= {token: len(vocab) + n for n, token in enumerate(QWEN_SPECIAL)}
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer(
        vocab=vocab, merges=merges, additional_special_tokens=list(QWEN_SPECIAL)
    )
    return tokenizer


def kimi(folder: Path) -> PreTrainedTokenizerBase:
    """Reads tiktoken.model; tokenizer_config.json names some of the ids behind the ranks."""
    file = folder / "tiktoken.model"
    _require(file, "tiktoken")
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(file))
    core = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(KIMI_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    path = folder / "tokenizer_config.json"
    try:
        settings = dict(read_settings(path))
        added = dict(settings.get("added_tokens_decoder", {}))
        named = {int(index): str(token["content"]) for index, token in added.items()}
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(f"{path} names no tokens: {summary(error)}.") from error
    beyond = range(len(vocab), len(vocab) + KIMI_RESERVED)
    core.add_special_tokens([named.get(n, f"<|reserved_token_{n}|>") for n in beyond])
    template = folder / "chat_template.jinja"
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template.read_text("utf-8")
        if template.is_file()
        else settings.get("chat_template"),
        **{name: settings[name] for name in KIMI_ROLES if isinstance(settings.get(name), str)},
    )
    return tokenizer


def gpt2(folder: Path) -> PreTrainedTokenizerBase:
    """Reads vocab.json and merges.txt."""
    tokenizer: PreTrainedTokenizerBase = GPT2Tokenizer.from_pretrained(folder)
    return tokenizer


def none(folder: Path) -> PreTrainedTokenizerBase:
    """Raises CheckpointError: families whose authors publish tokenizer.json have nothing else."""
    raise CheckpointError(f"{folder} has no tokenizer.json, so it has no tokenizer.")


def _sentencepiece(cls: type[SentencePieceTokenizer], folder: Path) -> PreTrainedTokenizerBase:
    file = folder / "tokenizer.model"
    _require(file, "sentencepiece")
    _pieces(file)
    tokenizer: PreTrainedTokenizerBase = cls.from_pretrained(folder)
    return tokenizer


def _pieces(file: Path) -> int:
    """How many pieces a sentencepiece model has; raises CheckpointError if the file is none."""
    from sentencepiece import SentencePieceProcessor  # an extra that few families need

    try:
        return int(SentencePieceProcessor(str(file)).get_piece_size())
    except RuntimeError as error:  # whatever is wrong with the file
        raise CheckpointError(f"{file} is no sentencepiece model: {error}.") from error


def _require(file: Path, library: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {file.name}, so it has no tokenizer.")
    if find_spec(library) is None:
        raise ImportError(
            f"{file} is read with the {library} library: pip install 'rabbitllm[legacy]'."
        )
