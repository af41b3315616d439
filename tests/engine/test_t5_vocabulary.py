"""T5's vocabulary: read from a SentencePiece model, found where users have it, and said when it is nowhere."""

from __future__ import annotations

import hashlib
import string
import struct
from pathlib import Path
from typing import Any

import pytest
import transformers

from streamapp.engine import EngineError, t5_vocabulary
from streamapp.engine.t5_vocabulary import t5_tokenizer, tokenizer_of

PIECES = [(piece, -float(place)) for place, piece in enumerate(
    ["<pad>", "</s>", "<unk>", "▁", "▁red", "▁a", "apple", *string.ascii_lowercase]
)]  # fmt: skip


def field(number: int, kind: int, value: bytes) -> bytes:
    return bytes([number << 3 | kind]) + (varint(len(value)) if kind == 2 else b"") + value


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def sentence_piece(pieces: list[tuple[str, float]]) -> bytes:
    """As SentencePiece stores it: pieces, what it was trained with, how text is normalised."""
    entries = b"".join(
        field(1, 2, field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, varint(1)))
        for text, score in pieces
    )
    return entries + field(2, 2, b"x" * 300) + field(3, 2, field(1, 2, b"identity"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small vocabulary in the place of T5's."""
    raw = sentence_piece(PIECES)
    monkeypatch.setattr(t5_vocabulary, "DIGEST", hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(t5_vocabulary, "SIZE", len(raw))
    return raw


def test_it_tokenizes_as_the_library_does_with_the_same_pieces(published: bytes) -> None:
    library: Any = transformers
    theirs = library.T5TokenizerFast(vocab=[*PIECES, *[(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)]])
    ours = tokenizer_of(published, "spiece.model")
    assert ours("a red apple").input_ids == theirs("a red apple").input_ids
    assert ours("red apple").input_ids == [4, 3, 6, 1]
    assert len(ours) == len(PIECES) + 100
    assert ours("red", padding="max_length", max_length=4).input_ids == [4, 1, 0, 0]


def test_it_is_taken_from_the_cache_in_place(published: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="streamapp models vocabulary") as caught:
        t5_tokenizer()
    assert caught.value.code == "load_failed"
    file = tmp_path / "models--x--y" / "snapshots" / "1" / "tokenizer_2" / "spiece.model"
    file.parent.mkdir(parents=True)
    file.write_bytes(published)
    assert t5_tokenizer()("red").input_ids == [4, 1]
    file.write_bytes(b"x" + published[1:])
    with pytest.raises(EngineError, match="is not T5's vocabulary"):
        t5_tokenizer()


def test_the_folder_of_the_encoder_comes_first(published: bytes, tmp_path: Path) -> None:
    encoder, beside = tmp_path / "text_encoder_2", tmp_path / "tokenizer_2"
    encoder.mkdir()
    beside.mkdir()
    (beside / "spiece.model").write_bytes(sentence_piece([*PIECES, ("▁green", -0.1)]))
    named = tmp_path / "named.model"
    named.write_bytes(published)
    assert len(t5_tokenizer(named, encoder)) == len(PIECES) + 101
    assert len(t5_tokenizer(named)) == len(PIECES) + 100
    t5_tokenizer(named).save_pretrained(beside)
    assert (beside / "tokenizer.json").is_file()
    assert t5_tokenizer(None, encoder)("a red").input_ids == t5_tokenizer(named)("a red").input_ids


@pytest.mark.parametrize("raw", [b"", b"\x0a\xff", b"<html>", sentence_piece(PIECES)[:40]])
def test_what_is_no_vocabulary_is_refused(raw: bytes) -> None:
    with pytest.raises(EngineError, match="no SentencePiece model"):
        tokenizer_of(raw, "spiece.model")
