"""Previews: what a picture will be, long before it is decoded."""

from __future__ import annotations

from typing import Any

import torch

from streamapp.engine import Engine, Event, Picture
from tests.engine.test_engine import job as fake_job
from tests.engine.test_exact import POCKET, job


def events_of(every: int, **given: Any) -> list[Event]:
    """What one job of eight steps tells."""
    engine = Engine(preview_every=every)
    engine.load("m", POCKET, "sd15")
    engine.submit(job(**{"num_inference_steps": 8, "width": 128, "height": 128, "output": "rgb", "seed": 2, **given}))
    events = list(engine.run())
    engine.close()
    return events


def grid(picture: Picture, side: int) -> torch.Tensor:
    """A picture's colours as numbers, reduced to ``(side, side, 3)``."""
    pixels = torch.frombuffer(bytearray(picture.pixels), dtype=torch.uint8).reshape(picture.height, picture.width, 3)
    pooled = torch.nn.functional.adaptive_avg_pool2d(pixels.float().movedim(-1, 0)[None], side)
    return pooled[0].movedim(0, -1)


def alike(a: Picture, b: Picture) -> float:
    """Correlation of two pictures' colours."""
    pairs = torch.stack([grid(a, 16).flatten(), grid(b, 16).flatten()])
    return float(torch.corrcoef(pairs)[0, 1])


def test_a_preview_looks_like_the_picture_and_more_so_near_the_end() -> None:
    """One pixel per latent place; another seed's picture is not what it looks like."""
    events = events_of(1)
    previews = [event.value for event in events if event.kind == "preview"]
    picture, other = events[-1].value, events_of(0, prompt="a blue car", seed=3)[-1].value
    assert [(p.width, p.height, len(p.pixels)) for p in previews] == [(16, 16, 16 * 16 * 3)] * 7
    assert alike(previews[-1], picture) > 0.9
    assert alike(previews[-1], picture) > alike(previews[0], picture)
    assert alike(previews[-1], picture) > alike(previews[-1], other) + 0.1


def test_previews_come_every_k_ticks_and_only_where_asked() -> None:
    """Never of a finished sample, which gives its picture; a family without gives none."""
    kinds = [event.kind for event in events_of(3)]
    assert [place for place, kind in enumerate(kinds) if kind == "preview"] == [3, 7]
    assert "preview" not in [event.kind for event in events_of(0)]
    engine = Engine(preview_every=1)
    engine.load("m", "somewhere", "fake")
    engine.submit(fake_job())
    assert {event.kind for event in engine.run()} == {"progress", "image"}


def test_previews_change_nothing() -> None:
    """The picture is the same, bit for bit."""
    assert events_of(1)[-1].value.pixels == events_of(0)[-1].value.pixels
