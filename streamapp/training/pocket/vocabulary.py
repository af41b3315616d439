"""Stage "vocabulary": byte-pair tokens learned from the captions, in the form of CLIP's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamapp.training.pocket import data
from streamapp.training.pocket.networks import WINDOW
from streamapp.training.pocket.work import Work

MERGES, CAPTIONS = 3500, 120_000
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def learn(work: Work) -> None:
    """Write the folder ``tokenizer``, unless it is there."""
    if (work.path("tokenizer") / "vocab.json").exists():
        return
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    learner: Any = Tokenizer(BPE(end_of_word_suffix="</w>"))
    form = _tokenizer({BEGIN: 0, END: 1}, []).backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = form.normalizer, form.pre_tokenizer
    # More than is kept, since the trainer counts the single bytes among them.
    trainer = BpeTrainer(vocab_size=MERGES + 600, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(_texts(data.load(work), work.seed), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:MERGES]
    single = _bytes()
    tokens = [*single, *(f"{byte}</w>" for byte in single), *("".join(pair) for pair in merges), BEGIN, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = _tokenizer(vocabulary, merges)
    folder = work.path("tokenizer")
    made.save_pretrained(folder)
    _classic(folder, vocabulary, merges)


def load(work: Work) -> Any:
    """The tokenizer that :func:`learn` wrote."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(work.path("tokenizer"), local_files_only=True)


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> Any:
    from transformers import CLIPTokenizer

    kind: Any = CLIPTokenizer
    return kind(vocab=vocabulary, merges=merges, model_max_length=WINDOW)


def _classic(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> None:
    """The two files that other readers want beside ``tokenizer.json``."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bytes() -> list[str]:
    """The 256 signs that stand for bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _texts(known: data.Data, seed: int) -> Iterator[str]:
    chance = random.Random(f"{seed} vocabulary")
    for _ in range(CAPTIONS):
        yield known.captions.of(chance.choice(known.scenes), chance)
    for concept in known.concepts:
        for name in [*concept.words, *(name for _, name in concept.others)]:
            yield from [name] * 200
