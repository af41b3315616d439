"""Prompts as A1111 users write them."""

from __future__ import annotations

import pytest

from streamapp.engine.prompts import Fragment, Window, parse, windows


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("a [red] cat", [("a ", 1.0), ("red", 1 / 1.1), (" cat", 1.0)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("(red:1.5), blue", [("red", 1.5), (", blue", 1.0)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("(red : -.5 )", [("red ", -0.5)]),
        (r"\(red\) \[x\] \\", [("(red) [x] \\", 1.0)]),
        ("time 12:30", [("time 12:30", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("[open (both", [("open ", 1 / 1.1), ("both", 1.1 / 1.1)]),
        ("closed) and ] and :2)", [("closed) and ] and :2)", 1.0)]),
        ("(two words:1.2:1.3)", [("two words:1.2", 1.3)]),
        ("a BREAK b", [("a", 1.0), (None, 1.0), ("b", 1.0)]),
        ("(a BREAK b:2)", [("a", 2.0), (None, 1.0), ("b", 2.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
    ],
)
def test_brackets_give_weights(prompt: str, expected: list[tuple[str | None, float]]) -> None:
    found = parse(prompt)
    assert [fragment.text for fragment in found] == [text for text, _ in expected]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in expected])


def test_every_character_survives_where_no_bracket_means_anything() -> None:
    text = "plain: words, 3:4 \\ more"
    assert parse(text) == [Fragment(text)]


def cut(prompt: str, size: int = 5, comma: str | None = ",") -> list[str]:
    """Windows of letters."""
    found = windows(prompt, lambda text: [ord(letter) for letter in text], size, ord(comma) if comma else None)
    return ["".join(map(chr, window.tokens)) for window in found]


def test_windows_are_filled_and_break_behind_the_last_comma() -> None:
    assert cut("") == [""]
    assert cut("abcde") == ["abcde"]
    assert cut("abcdef") == ["abcde", "f"]
    assert cut("ab,cdef") == ["ab,", "cdef"]
    assert cut("abcde,f") == ["abcde", ",f"]
    assert cut("ab,cdef", comma=None) == ["ab,cd", "ef"]


def test_a_comma_too_far_back_breaks_nothing() -> None:
    assert cut("a," + "b" * 40, size=30) == ["a," + "b" * 28, "b" * 12]


def test_break_starts_a_new_window() -> None:
    assert cut("ab BREAK cd") == ["ab", "cd"]
    assert cut("ab BREAK BREAK cd") == ["ab", "", "cd"]


def test_tokens_keep_their_weights_across_windows() -> None:
    found = windows("a(bc:2)d", lambda text: [ord(letter) for letter in text], 2)
    assert found == (Window((97, 98), (1.0, 2.0)), Window((99, 100), (2.0, 1.0)))
