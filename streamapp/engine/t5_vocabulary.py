"""T5's vocabulary (Raffel et al. 2020), which cannot ship: a SentencePiece model, read where it lies.

It comes from the folder of the checkpoint or of its T5, from a file that the caller names, or from the user's Hugging
Face cache. All versions of T5 have the same one; what is not beside the weights has to be exactly that.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamapp.engine.errors import EngineError

FILE = "spiece.model"
#: SHA-256 and bytes of the published file.
DIGEST = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
SIZE = 791_656
#: Sentinels behind the pieces, which prompts never reach.
EXTRA = 100
#: Folders of a checkpoint in which T5's tokenizer may be.
FOLDERS = ("tokenizer_3", "tokenizer_2", "tokenizer")


def t5_tokenizer(named: str | Path | None = None, encoder: Path | None = None) -> Any:
    """A ``T5Tokenizer``.

    Args:
        named: the vocabulary's file.
        encoder: the folder of the encoder: its own tokenizer, beside it, comes first.

    Raises:
        EngineError: ``load_failed`` saying where to put it, when it is nowhere; or for a damaged one.
    """
    if encoder is not None:
        for folder in (encoder, *(encoder.parent / name for name in FOLDERS)):
            if (folder / "tokenizer.json").is_file():
                import transformers

                library: Any = transformers  # says nothing of this name to a type checker
                return library.T5TokenizerFast.from_pretrained(folder, local_files_only=True)
            if (folder / FILE).is_file():
                return tokenizer_of((folder / FILE).read_bytes(), FILE)
    path = Path(named) if named is not None else cached()
    if path is None:
        raise EngineError(
            "load_failed",
            f"T5's vocabulary is missing: `streamapp models vocabulary` fetches it once (0.8 MB), or put the {FILE} "
            "of any T5 beside the checkpoint",
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise EngineError("load_failed", f"T5's vocabulary cannot be read: {error}") from error
    if hashlib.sha256(raw).hexdigest() != DIGEST:
        raise EngineError("load_failed", f"{path.name} is not T5's vocabulary: its SHA-256 is another one")
    return tokenizer_of(raw, path.name)


def cached() -> Path | None:
    """T5's vocabulary in the user's Hugging Face cache, whichever model brought it."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    # Blobs of large files are named by their SHA-256.
    for pattern in (f"models--*/blobs/{DIGEST}", f"models--*/snapshots/*/{FILE}", f"models--*/snapshots/*/*/{FILE}"):
        for path in sorted(hub.glob(pattern)):
            if path.is_file() and path.stat().st_size == SIZE:
                return path
    return None


def tokenizer_of(raw: bytes, name: str) -> Any:
    """A tokenizer with the pieces, scores and normalisation of a SentencePiece model (``load_failed``)."""
    import transformers

    pieces: list[tuple[str, float]] = []
    charsmap: bytes | None = None
    try:
        for field, value in _fields(raw):
            if field == 1 and isinstance(value, bytes):
                entry = dict(_fields(value))
                text, score = entry[1], entry.get(2, b"\0\0\0\0")
                pieces.append((bytes(text).decode(), struct.unpack("<f", score)[0]))  # type: ignore[arg-type]
            elif field == 3 and isinstance(value, bytes):
                found = dict(_fields(value)).get(2)
                charsmap = found if isinstance(found, bytes) and found else None
    except (KeyError, ValueError, IndexError, TypeError, struct.error) as error:
        raise EngineError("load_failed", f"{name} is no SentencePiece model: {error}") from error
    if len(pieces) < 4:
        raise EngineError("load_failed", f"{name} is no SentencePiece model: it has no pieces")
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(EXTRA))]
    library: Any = transformers
    return library.T5TokenizerFast(vocab=pieces, extra_ids=EXTRA, _spm_precompiled_charsmap=charsmap)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A protocol buffer's fields: number, and value as it lies there."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = raw[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while place < len(raw):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else -1)
        if length < 0 or place + length > len(raw):
            raise ValueError(f"a field of kind {kind} at byte {place}")
        yield key >> 3, raw[place : place + length]
        place += length
