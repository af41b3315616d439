"""Textual inversion: words that name learned vectors are drawn as diffusers draws them with load_textual_inversion."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamapp.engine import EngineError, EngineProcess, embeddings
from streamapp.engine.clip import Encodings
from streamapp.engine.embeddings import Embedding
from streamapp.engine.families.fake import FakeCheckpoint
from tests.engine import tiny, tiny_sd3
from tests.engine.references import TOLERANCE, Load, both, reference
from tests.engine.test_exact import draw, error, job

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
#: Wider than the encoders' own table, so that they count.
WIDTHS = {"clip_l": 16, "clip_g": 24}


def vectors(count: int, width: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Three vectors as A1111 writes them."""
    file = tmp_path / "toy.safetensors"
    save_file({"emb_params": vectors(3, 16)}, file)
    return file


def test_a_word_of_three_vectors_equals_the_pipeline(load: Load, one: Path, tmp_path: Path) -> None:
    """In brackets of the prompt, and in the negative one, whatever its case."""
    folder = tmp_path / "sd"
    pipeline = tiny.sd(folder)
    engine = load(folder, "sd15")
    wanted = job(prompt="a Toy, red", negative_prompt="toy", seed=9)
    without = draw(engine, [wanted])[0, 0]
    engine.load_embedding("toy", one, model="m")
    pipeline.load_textual_inversion({"toy": vectors(3, 16)}, token="toy")
    expected = reference(pipeline, job(prompt="a toy, red", negative_prompt="toy", seed=9))
    for drawn in both(engine, wanted):
        assert error(drawn, expected) <= TOLERANCE
    assert error(without, expected) > 1e-3
    # Another word that only contains the name is no embedding.
    plain = job(prompt="a toys, red", negative_prompt="stoy", seed=9)
    assert error(draw(engine, [plain])[0, 0], reference(tiny.sd(tmp_path / "other"), plain)) <= TOLERANCE
    engine.unload_embedding("toy")
    assert torch.equal(draw(engine, [wanted])[0, 0], without)


def test_both_encoders_of_sdxl_have_their_own_vectors(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "sdxl"
    pipeline = tiny.sdxl(folder)
    engine = load(folder, "sdxl")
    tables = {key: vectors(2, width, seed) for seed, (key, width) in enumerate(WIDTHS.items())}
    save_file(tables, tmp_path / "toy.safetensors")
    engine.load_embedding("toy", tmp_path / "toy.safetensors", model="m")
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {"text_encoder": pipeline.components[f"text_encoder{end}"]}
        parts["tokenizer"] = pipeline.components[f"tokenizer{end}"]
        pipeline.load_textual_inversion({"toy": tables[key]}, token="toy", **parts)
    wanted = job(prompt="toy in red", negative_prompt="no toy", seed=4)
    expected = reference(pipeline, wanted)
    for drawn in both(engine, wanted):
        assert error(drawn, expected) <= TOLERANCE
    plain = job(prompt="tax in red", negative_prompt="no tax", seed=4)
    assert error(draw(engine, [plain])[0, 0], expected) > 1e-3


def test_diffusers_own_files_hold_the_token(sd15: tuple[Any, Path], load: Load, one: Path, tmp_path: Path) -> None:
    """A name that is no word; neighbours with and without share the forward."""
    save_file({"<cat-toy>": vectors(3, 16)}, tmp_path / "learned_embeds.safetensors")
    engine = load(sd15[1], "sd15")
    engine.load_embedding("<cat-toy>", tmp_path / "learned_embeds.safetensors", model="m")
    engine.load_embedding("toy", one, model="m")
    drawn = draw(engine, [job(prompt="a <cat-toy>red"), job(prompt="a toy red"), job(prompt="a cat red")])
    assert error(drawn[0, 0], drawn[1, 0]) <= TOLERANCE
    assert error(drawn[2, 0], drawn[1, 0]) > 1e-3
    assert set(engine.stats()["embeddings"]) == {"toy", "<cat-toy>"}


def test_vectors_weigh_what_their_word_weighs_and_stay_in_one_window(
    sd15: tuple[Any, Path], load: Load, one: Path
) -> None:
    engine = load(sd15[1], "sd15")
    engine.load_embedding("toy", one, model="m")
    # Windows take fifteen letters: two are left, three are wanted.
    broken, whole = job(prompt="abcdefghijklm toy"), job(prompt="abcdefghijklm BREAK toy")
    drawn = draw(engine, [broken, whole, job(prompt="(toy:1.4)"), job(prompt="toy")])
    assert error(drawn[0, 0], drawn[1, 0]) <= TOLERANCE
    assert error(drawn[2, 0], drawn[3, 0]) > 1e-3


def test_an_encoding_is_kept_for_the_embedding_it_was_made_with(
    sd15: tuple[Any, Path], load: Load, one: Path, tmp_path: Path
) -> None:
    engine = load(sd15[1], "sd15")
    engine.load_embedding("toy", one, model="m")
    first = draw(engine, [job(prompt="toy")])[0, 0]
    save_file({"emb_params": vectors(3, 16, seed=8)}, tmp_path / "other.safetensors")
    engine.load_embedding("toy", tmp_path / "other.safetensors", model="m")
    assert error(draw(engine, [job(prompt="toy")])[0, 0], first) > 1e-3
    engine.load_embedding("toy", one, model="m")
    assert torch.equal(draw(engine, [job(prompt="toy")])[0, 0], first)


def test_an_embedding_stays_while_a_job_that_names_it_waits(sd15: tuple[Any, Path], load: Load, one: Path) -> None:
    engine = load(sd15[1], "sd15")
    engine.load_embedding("toy", one, model="m")
    expected = draw(engine, [job(prompt="toy")])[0, 0]
    name = engine.submit(job(prompt="toy"))
    with pytest.raises(EngineError, match="embedding 'toy' is in use"):
        engine.unload_embedding("toy")
    waiting = engine.park(name, 0)
    engine.unload_embedding("toy")
    with pytest.raises(EngineError, match=r"embedding toy of the parked sample was .*, here it is absent"):
        engine.resume(waiting)
    engine.load_embedding("toy", one, model="m")
    engine.resume(waiting)
    engine.step()
    # Encoded: what follows needs it no more.
    under_way = engine.park(name, 0)
    engine.unload_embedding("toy")
    engine.resume(under_way)
    (image,) = [event.value for event in engine.run() if event.kind == "image"]
    assert torch.equal(image, expected)


def test_prompts_are_encoded_ahead_and_once(
    sd15: tuple[Any, Path], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(sd15[1], "sd15")
    seen: list[str] = []
    get: Any = Encodings.get

    def noted(texts: list[str]) -> list[str]:
        seen.extend(texts)
        return texts

    def watched(self: Any, wanted: Any, encode: Any) -> Any:
        return get(self, wanted, lambda texts, *given: encode(noted(texts), *given))

    monkeypatch.setattr(Encodings, "get", watched)
    engine.encode_ahead(["frog", "", "frog"], "m")
    assert sorted(seen) == ["", "frog"]
    draw(engine, [job(prompt="frog"), job(prompt="frog", seed=2), job(prompt="dog", num_images=2)])
    assert sorted(seen) == ["", "dog", "frog"]


BAD: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "wrong width": ({"emb_params": vectors(2, 24)}, "incompatible_embedding", "has vectors of 24 values, text_encoder"),
    "of sdxl": ({key: vectors(1, 16) for key in WIDTHS}, "incompatible_embedding", "holds clip_g, clip_l; sd15 takes"),
    "too long": ({"emb_params": vectors(16, 16)}, "incompatible_embedding", "has 16 vectors; a window takes 15"),
    "not a number": ({"emb_params": torch.full((1, 16), torch.nan)}, "load_failed", "values that are no numbers"),
    "no table": ({"emb_params": torch.zeros(1, 1, 16)}, "incompatible_embedding", "no table of vectors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_by_name(sd15: tuple[Any, Path], load: Load, tmp_path: Path, case: str) -> None:
    tables, code, says = BAD[case]
    save_file(tables, tmp_path / "toy.safetensors")
    engine = load(sd15[1], "sd15")
    with pytest.raises(EngineError, match=f"embedding 'toy' .*{says}") as refused:
        engine.load_embedding("toy", tmp_path / "toy.safetensors", model="m")
    assert refused.value.code == code
    assert engine.stats()["embeddings"] == {}


def test_pickles_and_other_families_are_refused(
    sd15: tuple[Any, Path], sdxl: tuple[Any, Path], load: Load, one: Path, tmp_path: Path
) -> None:
    torch.save({"string_to_param": {"*": vectors(1, 16)}}, tmp_path / "toy.pt")
    with pytest.raises(EngineError, match=r"cannot be read.*safetensors") as refused:
        load(sd15[1], "sd15").load_embedding("toy", tmp_path / "toy.pt", model="m")
    assert refused.value.code == "load_failed"
    with pytest.raises(EngineError, match="sdxl takes a file with clip_l and clip_g"):
        load(sdxl[1], "sdxl").load_embedding("toy", one, model="m")
    tiny_sd3.sd3(tmp_path / "sd3")
    with pytest.raises(EngineError, match="sd3 checkpoints take no embeddings yet"):
        load(tmp_path / "sd3", "sd3").load_embedding("toy", one, model="m")


def test_of_two_names_the_longer_one_is_meant() -> None:
    known = FakeCheckpoint(Path("fake"), {}).embeddings
    for name in ("bad", "bad hands-5", "<x>"):
        known.load(name, Path("nowhere"))
    named = [piece.name if isinstance(piece, Embedding) else piece for piece in known.pieces("Bad hands-5, bad,<x>y")]
    assert named == ["bad hands-5", ", ", "bad", ",", "<x>", "y"]
    assert known.named("badly", "a <X>") == {"<x>": "<x>"}
    with pytest.raises(EngineError, match="its name is a word in prompts"):
        known.load(" ", Path("nowhere"))


def test_only_so_many_stay_and_none_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST", 2)
    known = FakeCheckpoint(Path("fake"), {}).embeddings
    for name in ("a", "b", "c"):
        known.load(name, Path(name))
    assert known.has("A", Path("a"))
    assert not known.has("a", Path("another"))
    known.make_room({"b"})
    assert set(known.sizes) == {"a", "b"}


def test_a_job_that_relies_on_a_word_is_refused_without_it(sd15: tuple[Any, Path], load: Load, one: Path) -> None:
    engine = load(sd15[1], "sd15")
    wanted = job(prompt="a toy", embeddings=("toy",))
    with pytest.raises(EngineError, match="embedding 'toy' is not loaded for 'm'") as refused:
        engine.submit(wanted)
    assert refused.value.code == "unknown_embedding"
    engine.load_embedding("toy", one, model="m")
    assert draw(engine, [wanted])


def test_a_new_child_gets_the_words_that_the_last_one_had() -> None:
    host = EngineProcess(attempts=1)
    try:
        host.load("m", "here", "fake")
        host.load_embedding("toy", "toy.safetensors", model="m")
        host.load_embedding("gone", "gone.safetensors", model="m")
        host.unload_embedding("gone")
        os.kill(host.pid or 0, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while host.restarts == 0 or host.state != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        host.submit(job(prompt="a toy"))
        assert any(event.kind == "image" for event in host.run())
        assert set(host.stats()["embeddings"]) == {"toy"}
    finally:
        host.close()
