"""Textual inversion: words that stand for vectors learned for a text encoder (Gal et al. 2022). No torch at import.

An embedding is used by its name in a prompt, as A1111 users do: written as a word, whatever its case. Its vectors stay
together in one window. The tokenizer and the encoder's own table of tokens are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamapp.engine.errors import EngineError

#: Embeddings of one checkpoint that stay loaded.
MOST = 256
#: Tokens of CLIP's windows.
WINDOW = 75
#: What a file's only entry is called, and the entries of files for two encoders, in the encoders' order.
ONE, TWO = "emb_params", ("clip_l", "clip_g")


@dataclass(frozen=True, eq=False)
class Embedding:
    """One loaded file: for each encoder as many vectors, ``(vectors, width)``.

    ``first`` is the token that its first vector has in a prompt: negative, counted down, never one of a tokenizer's.
    """

    name: str
    vectors: Mapping[str, Any]
    digest: str
    count: int = 1
    first: int = -1
    path: Path | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """What stands for its vectors in a prompt."""
        return tuple(self.first - place for place in range(self.count))

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(table.numel() * table.element_size() for table in self.vectors.values())


class Embeddings:
    """The embeddings of one checkpoint, by name.

    Args:
        family: of the checkpoint.
        encoders: its text encoders that take them, by the names by which they are told apart.

    Attributes:
        longest: vectors that fit a window.
    """

    def __init__(self, family: str, encoders: Mapping[str, Any]) -> None:
        self._family = family
        self._encoders = encoders
        self.longest = WINDOW
        self._loaded: dict[str, Embedding] = {}
        self._last = 0
        self._pattern: re.Pattern[str] | None = None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Resident embeddings and their bytes."""
        return {embedding.name: embedding.bytes for embedding in self._loaded.values()}

    def load(self, name: str, path: Path) -> None:
        """Keep a file's vectors under a name; one of that name is replaced.

        Raises:
            EngineError: ``load_failed`` for an unreadable file, ``incompatible_embedding`` for one of another family,
                ``invalid_job`` for a name that no prompt can hold.
        """
        if not name.strip() or name != name.strip():
            raise EngineError("invalid_job", f"embedding {name!r}: its name is a word in prompts", field="name")
        vectors, digest = self._read(name, path)
        count = max((table.shape[0] for table in vectors.values()), default=1)
        if count > self.longest:
            raise self._refused(name, f"has {count} vectors; a window takes {self.longest}")
        self._loaded.pop(name.lower(), None)
        self._loaded[name.lower()] = Embedding(name, vectors, digest, count, self._last - 1, path)
        self._last -= count
        self._names_changed()

    def has(self, name: str, path: Path) -> bool:
        """Whether this file is loaded under this name; then it counts as used now."""
        known = self._loaded.get(name.lower())
        if known is None or known.path != path:
            return False
        self._loaded[name.lower()] = self._loaded.pop(name.lower())
        return True

    def make_room(self, keep: Collection[str]) -> None:
        """Drop the least recently loaded ones that are too many, but for those named in ``keep``."""
        idle = [embedding.name for embedding in self._loaded.values() if embedding.name not in keep]
        for name in idle[: max(0, len(self._loaded) - MOST)]:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Drop an embedding: its name is an ordinary word again; unknown ones are ignored."""
        if self._loaded.pop(name.lower(), None) is not None:
            self._names_changed()

    def pieces(self, text: str) -> list[str | Embedding]:
        """Words and, in their places, the embeddings that they name; of two names that fit the longer one."""
        found: list[str | Embedding] = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            found += [text[end : match.start()], self._loaded[match.group().lower()]]
            end = match.end()
        return [piece for piece in [*found, text[end:]] if piece]

    def named(self, *texts: str) -> dict[str, str]:
        """The embeddings that these prompts name, with their digests."""
        pieces = [piece for text in texts for piece in self.pieces(text)]
        return {piece.name: piece.digest for piece in pieces if isinstance(piece, Embedding)}

    def digests(self, text: str) -> tuple[str, ...]:
        """What of them decides how a prompt is encoded."""
        return tuple(sorted(self.named(text).values()))

    def rows(self, part: str, tokens: Sequence[int]) -> list[Any]:
        """An encoder's vectors for such tokens, ``(width,)`` each."""
        places = {
            token: embedding.vectors[part][place]
            for embedding in self._loaded.values()
            for place, token in enumerate(embedding.tokens)
        }
        return [places[token] for token in tokens]

    def _names_changed(self) -> None:
        self._pattern = pattern([embedding.name for embedding in self._loaded.values()])

    def _refused(self, name: str, reason: str) -> EngineError:
        return EngineError("incompatible_embedding", f"embedding {name!r} {reason}", embedding=name)

    def _read(self, name: str, path: Path) -> tuple[dict[str, Any], str]:
        """Vectors by encoder, and which ones they are."""
        from streamapp.engine.digests import digest

        if not self._encoders:
            raise self._refused(name, f"cannot be used: {self._family} checkpoints take no embeddings yet")
        tables = self._tables(name, path)
        found = {}
        for (part, encoder), table in zip(self._encoders.items(), tables, strict=True):
            own = encoder.get_input_embeddings().weight
            if table.shape[-1] != own.shape[-1]:
                reason = f"has vectors of {table.shape[-1]} values, {part} of this checkpoint takes {own.shape[-1]}"
                raise self._refused(name, f"{reason}; it was made for another family")
            if not table.isfinite().all():
                raise EngineError("load_failed", f"embedding {name!r} holds values that are no numbers")
            found[part] = table.to(own.device, own.dtype)
        return found, digest(found.items())

    def _tables(self, name: str, path: Path) -> list[Any]:
        """A file's tables ``(vectors, width)``, one for each encoder."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            raw = load_file(path)
        except (OSError, SafetensorError) as error:
            reason = f"embedding {name!r} cannot be read: {error}; it must be a safetensors file"
            raise EngineError("load_failed", reason, embedding=name) from error
        keys = TWO if len(self._encoders) == len(TWO) else (ONE,) if ONE in raw else tuple(raw)
        if not set(keys) <= raw.keys() or len(keys) != len(self._encoders):
            wanted = " and ".join(TWO) if len(self._encoders) == len(TWO) else f"{ONE} or its token alone"
            reason = f"holds {', '.join(sorted(raw)) or 'nothing'}; {self._family} takes a file with {wanted}"
            raise self._refused(name, reason)
        tables = [raw[key][None] if raw[key].dim() == 1 else raw[key] for key in keys]
        if any(table.dim() != 2 for table in tables) or len({table.shape[0] for table in tables}) > 1:
            raise self._refused(name, "holds no table of vectors for each encoder")
        return tables


def pattern(names: Sequence[str]) -> re.Pattern[str] | None:
    """Where a prompt names one of these, whatever its case; of two that fit the longer one. None for no names."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(_word, longest)), re.IGNORECASE) if longest else None


def _word(name: str) -> str:
    """A pattern of a name that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", name) else ""
    return f"{before}{re.escape(name)}{after}"
