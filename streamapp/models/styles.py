"""The table of styles: each adds its words to the prompt, and the recipe keeps its name."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from streamapp.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Style:
    """A named look; ``words`` follow the user's text, ``aliases`` are other names that clients send."""

    name: str
    words: str
    aliases: tuple[str, ...] = ()


STYLES = MappingProxyType(
    {
        style.name: style
        for style in (
            Style("photographic", "photograph, sharp focus, natural light", ("photo", "realistic", "写实", "摄影")),
            Style("cinematic", "cinematic lighting, film still, shallow depth of field", ("film", "电影")),
            Style("anime", "anime style, cel shading, clean lines", ("manga", "动漫", "二次元")),
            Style("comic-book", "comic book style, bold ink outlines, halftone", ("comic", "漫画")),
            Style("digital-art", "digital art, vivid colors, highly detailed", ("digital", "数字艺术")),
            Style("fantasy-art", "fantasy art, epic, magical atmosphere", ("fantasy", "奇幻")),
            Style("oil-painting", "oil painting, visible brush strokes, canvas texture", ("oil", "油画")),
            Style("watercolor", "watercolor painting, soft washes, paper texture", ("watercolour", "水彩")),
            Style("ink-painting", "traditional ink wash painting, brush strokes", ("ink", "水墨", "国风")),
            Style("line-art", "line art, black ink on white paper, no shading", ("sketch", "线稿", "素描")),
            Style("pixel-art", "pixel art, 16-bit, limited palette", ("pixel", "像素")),
            Style("3d-model", "3d render, octane render, studio lighting", ("3d", "3d-render", "三维")),
            Style("low-poly", "low poly, flat shaded triangles", ("lowpoly",)),
            Style("sticker", "sticker, white border, flat colors", ("emoji", "贴纸")),
            Style("cartoon", "cartoon style, kawaii, simple shapes", ("kawaii", "卡通")),
        )
    }
)

_BY_NAME = {name: style for style in STYLES.values() for name in (style.name, *style.aliases)}


def find_style(name: str | None) -> Style | None:
    """The style of that name or alias, in any case, blanks and underscores as dashes; ``None`` for no style.

    Raises:
        InvalidRequest: when it is not known; names those that are.
    """
    word = "-".join((name or "").strip().lower().replace("_", " ").split())
    if word in {"", "none"}:
        return None
    style = _BY_NAME.get(word)
    if style is None:
        near = get_close_matches(word, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidRequest(
            f"style {str(name)[:40]!r} is not known; {hint}Known styles: {', '.join(STYLES)}",
            field="style",
            known=list(STYLES),
        )
    return style


def styled(text: str, style: str | None) -> str:
    """The prompt: the user's text followed by the words of the style.

    Raises:
        InvalidRequest: when the style is not known.
    """
    found = find_style(style)
    if found is None:
        return text
    return f"{text.rstrip().rstrip(',')}, {found.words}" if text.strip() else found.words
