"""Prompts as A1111 users write them: ``(word:1.2)``, ``(word)``, ``[word]``, ``BREAK``, any length. No torch here.

Round brackets multiply what they hold by 1.1 or by the number they name, square ones divide by 1.1, a backslash makes a
bracket an ordinary one, ``BREAK`` starts a new window. The rules are those of the A1111 web UI's page on attention and
emphasis; prompt editing (``[from:to:when]``) is not among them: it is read as a square bracket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEP = 1.1
#: A window that is full breaks behind its last comma, when that is at most so many tokens back.
LOOK_BACK = 20
#: Windows of one prompt; a denoiser's cost grows with them for everybody in the batch.
MAX_WINDOWS = 64

_PARTS = re.compile(r"\\[()\[\]\\]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|[\\:]")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Fragment:
    """Words with one weight; ``text`` None is a ``BREAK``."""

    text: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class Window:
    """Tokens of one pass through a text encoder, without begin, end and padding, each with its weight."""

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def parse(prompt: str) -> list[Fragment]:
    """The prompt's words with their weights, neighbours of one weight joined; brackets left open reach to the end."""
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def close(bracket: str, factor: float) -> None:
        start = opened.pop(_last(opened, bracket))[1]
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for found in _PARTS.finditer(prompt):
        part = found.group()
        if part in "([":
            opened.append((part, len(pieces)))
        elif part == ")" and _last(opened, "(") >= 0:
            close("(", STEP)
        elif part == "]" and _last(opened, "[") >= 0:
            close("[", 1 / STEP)
        elif found["weight"] is not None and _last(opened, "(") >= 0:
            close("(", float(found["weight"]))
        else:
            pieces.append((part[1:] if len(part) == 2 and part[0] == "\\" else part, 1.0))
    while opened:
        bracket = opened[-1][0]
        close(bracket, STEP if bracket == "(" else 1 / STEP)
    return _fragments(pieces)


def plain(prompt: str) -> tuple[str, bool]:
    """The prompt's words alone, for encoders that take no weights; whether weights or breaks were left out."""
    fragments = parse(prompt)
    left_out = any(fragment.text is None or fragment.weight != 1.0 for fragment in fragments)
    return "".join(" " if fragment.text is None else fragment.text for fragment in fragments), left_out


def _last(opened: Sequence[tuple[str, int]], bracket: str) -> int:
    """Where the bracket was opened last; -1 when it is not open."""
    return next((at for at in range(len(opened) - 1, -1, -1) if opened[at][0] == bracket), -1)


def _fragments(pieces: Sequence[tuple[str, float]]) -> list[Fragment]:
    """Join what has one weight, then cut at every BREAK."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    fragments: list[Fragment] = []
    for text, weight in joined:
        for number, part in enumerate(_BREAK.split(text)):
            fragments += [Fragment(None)] if number else []
            fragments += [Fragment(part, weight)] if part else []
    return fragments


def windows(
    prompt: str, tokenize: Callable[[str], Sequence[int | tuple[int, ...]]], size: int, comma: int | None = None
) -> tuple[Window, ...]:
    """Cut a prompt into windows of at most ``size`` tokens; always at least one.

    Args:
        prompt: as the user wrote it.
        tokenize: words to tokens, without begin and end; those of a tuple stay in one window.
        size: tokens of a window, 75 for CLIP.
        comma: the token of a comma, behind which a window rather breaks than in the middle of a thought.
    """
    done: list[Window] = []
    tokens: list[tuple[int, float]] = []

    def flush(count: int) -> None:
        done.append(Window(tuple(t for t, _ in tokens[:count]), tuple(w for _, w in tokens[:count])))
        del tokens[:count]

    for fragment in parse(prompt):
        if fragment.text is None:
            flush(len(tokens))
            continue
        for token in tokenize(fragment.text):
            together = token if isinstance(token, tuple) else (token,)
            if len(tokens) + len(together) > size:
                flush(len(tokens) if comma in together or len(together) > 1 else _break(tokens, comma))
            tokens += [(each, fragment.weight) for each in together]
    if tokens or not done:
        flush(len(tokens))
    return tuple(done)


def _break(tokens: Sequence[tuple[int, float]], comma: int | None) -> int:
    """How many tokens of a full window stay in it."""
    commas = [at for at, (token, _) in enumerate(tokens) if token == comma]
    return commas[-1] + 1 if commas and len(tokens) - commas[-1] <= LOOK_BACK else len(tokens)
