"""CLIP's byte-pair vocabulary (Radford et al. 2021) from the copy that ``open_clip`` installs.

Single-file checkpoints bring no tokenizer. The file is read where it lies; the package itself, which would load much
more than is needed, is never imported.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamapp.engine.errors import EngineError

FILE = "bpe_simple_vocab_16e6.txt.gz"
#: CLIP uses the first so many merges of the file, whose first line is a heading: 49,408 tokens in all.
MERGES = 48_894
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def clip_tokenizer(pad: str = END) -> Any:
    """A ``CLIPTokenizer`` of 49,408 tokens and windows of 77; SDXL's second encoder pads with ``!``.

    Raises:
        EngineError: ``load_failed`` when the vocabulary is not installed.
    """
    from transformers import CLIPTokenizer

    merges = read_merges()
    letters = list(_letters().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    tokenizer_class: Any = CLIPTokenizer
    return tokenizer_class(
        vocab={word: index for index, word in enumerate(words)},
        merges=merges,
        unk_token=END,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=pad,
        model_max_length=LENGTH,
    )


def read_merges() -> list[tuple[str, str]]:
    """The pairs that are merged, the most frequent first.

    Raises:
        EngineError: ``load_failed`` when the file is not installed.
    """
    spec = find_spec("open_clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((path for folder in folders if (path := Path(folder) / FILE).is_file()), None)
    if path is None:
        raise EngineError("load_failed", "the CLIP vocabulary is missing: install open_clip_torch as pinned")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    pairs = [line.split() for line in lines[1 : MERGES + 1]]
    return [(first, second) for first, second in pairs]


def _letters() -> dict[int, str]:
    """A printable character for each byte: itself where it is one, else the next one from U+0100 on (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + index) for index, byte in enumerate(others)}
