"""How likely tokens were, in the shapes of OpenAI's two kinds of completion."""

from collections.abc import Sequence
from typing import Any

from rabbitllm.batching import Share


def chat_logprobs(tokenizer: Any, shares: Sequence[Share]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        entry(share.token, share.logprob) | {"top_logprobs": [entry(*pair) for pair in share.top]}
        for share in shares
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Any, shares: Sequence[Share]) -> dict[str, Any]:
    """`logprobs` of a text choice; offsets are counted from the first of these tokens."""
    texts = [tokenizer.decode([share.token]) for share in shares]
    offsets = [len("".join(texts[:i])) for i in range(len(texts))]
    tops = [{tokenizer.decode([token]): value for token, value in share.top} for share in shares]
    return {
        "tokens": texts,
        "token_logprobs": [share.logprob for share in shares],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
