"""The infotext: other tools read it, and nothing a user types breaks its grammar."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from streamapp.generation import LoraRef
from streamapp.infotext import Infotext, clean, infotext, parse_infotext, write_infotext
from tests.postprocess.conftest import make_params, make_recipe

SETTINGS = {"Steps": "20", "Sampler": "DDIM", "CFG scale": "3", "Seed": "1"}


def test_the_three_blocks() -> None:
    version = make_recipe()["provenance"]["versions"]["streamapp"]
    assert infotext(make_recipe()) == (
        "a cute panda, sticker, white border <lora:brush:0.75>\n"
        "Negative prompt: blurry, text\n"
        "Steps: 20, Sampler: DDIM, CFG scale: 3, Seed: 1234, Size: 128x128, Model hash: ababababab, Model: pocket, "
        'Lora hashes: "brush: 0123456789ab", Postprocess upscale to: 512x512, Postprocess upscaler: Lanczos, '
        f'RNG: CPU, Version: streamapp {version}, Hashes: {{"model":"ababababab","lora:brush":"cdcdcdcdcd"}}'
    )


def test_no_negative_block_without_a_negative_prompt() -> None:
    lines = infotext(make_recipe(make_params(negative_prompt=None))).split("\n")
    assert len(lines) == 2
    assert lines[1].startswith("Steps: 20, ")


def test_names_that_the_tag_cannot_hold_get_no_tag() -> None:
    text = infotext(make_recipe(make_params(loras=(LoraRef(name="my brush, 2"),))))
    assert "<lora:" not in text
    assert '"lora:my brush, 2"' in text


@pytest.mark.parametrize(
    "prompt",
    [
        "一只可爱的熊猫，高质量",
        'say "hello", (red:1.3), [blue], {x|y}',
        "first line\nsecond line\n\nfourth",
        "Steps: 20, Sampler: x, CFG scale: 7, Seed: 1",
        "a\nSteps: 99, Sampler: other, CFG scale: 9, Seed: 5",
        "panda Negative prompt: nothing Negative prompt: twice",
        "Negative prompt: at the start",
        "emoji 🐼 and\ttab",
        "back\\slash \\( \\)",
        "lone \ud800 surrogate, nul \x00, escape \x1b[0m, bell \x07",
        "",
    ],
)
@pytest.mark.parametrize("negative", [None, "模糊, 文字", "a\nb: c"])
def test_sd_parsers_reads_what_we_write(prompt: str, negative: str | None) -> None:
    """An independent reader of this format finds prompt, negative prompt, sampler, seed and model."""
    recipe = make_recipe(make_params(prompt=prompt, negative_prompt=negative, loras=()))
    found = ParserManager().parse(_picture(infotext(recipe)))
    assert found is not None
    (sampler,) = found.samplers
    assert sampler.name == "DDIM"
    assert sampler.parameters["seed"] == "1234"
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("pocket", "ababababab")
    assert [part.value for part in sampler.prompts] == ([clean(prompt)] if clean(prompt) else [])
    assert [part.value for part in sampler.negative_prompts] == ([clean(negative)] if negative else [])


def _picture(text: str) -> io.BytesIO:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    file.seek(0)
    return file


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=80)
#: Texts made of what the grammar itself is made of.
TRICKY = st.lists(
    st.sampled_from(
        ["Negative prompt:", "Steps: 1", "\n", ", ", ": ", '"', "\\", "{", "}", "Hashes: {", "<lora:a:1>", " "]
    )
).map("".join)
NAMES = st.from_regex(r"[A-Z][a-z]{1,9}( [a-z]{1,9})?", fullmatch=True).filter(
    lambda name: not name.startswith(("Hashes", "Steps"))
)


@given(ANY_TEXT | TRICKY, ANY_TEXT | TRICKY, st.dictionaries(NAMES, ANY_TEXT | TRICKY, max_size=5))
def test_what_is_written_is_read_back(prompt: str, negative: str, extra: dict[str, str]) -> None:
    settings = SETTINGS | {name: value.encode("utf-8", "replace").decode() for name, value in extra.items()}
    text = write_infotext(Infotext(prompt, negative, settings))
    assert parse_infotext(text) == Infotext(clean(prompt), clean(negative), settings)


@given(ANY_TEXT | TRICKY)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "text", ["a cute panda", "一只熊猫, masterpiece (best quality:1.2)", "two\nlines", "Steps, not a setting"]
)
def test_ordinary_prompts_stand_as_they_are(text: str) -> None:
    assert clean(text) == text


def test_other_tools_infotexts_are_read() -> None:
    text = (
        "portrait of a fox, <lora:fur:0.8>\nsecond line\nNegative prompt: lowres, bad\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
        'Lora hashes: "fur: 0123456789ab, other: cd", Version: v1.9.4, Hashes: {"model": "e1", "lora:fur": "ab"}'
    )
    found = parse_infotext(text)
    assert found.prompt == "portrait of a fox, <lora:fur:0.8>\nsecond line"
    assert found.negative == "lowres, bad"
    assert found.settings["Schedule type"] == "Karras"
    assert found.settings["Lora hashes"] == "fur: 0123456789ab, other: cd"
    assert found.settings["Hashes"] == '{"model": "e1", "lora:fur": "ab"}'


def test_a_text_without_settings_is_all_prompt() -> None:
    assert parse_infotext("just words: and more") == Infotext("just words: and more", "", {})
