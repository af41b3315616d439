"""The picture that a task starts from, on its way through a worker."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from streamapp.db import InputRow, Inputs, LoraRow, State
from streamapp.errors import NotFound
from streamapp.generation import ControlRef, InputRef, Size, Start
from streamapp.models.shipped import POCKET
from streamapp.postprocess.finish import deliver
from streamapp.postprocess.reading import decoded
from streamapp.storage import input_key
from streamapp.worker.drawing import Order
from streamapp.worker.engine import engine_job
from streamapp.worker.inputs import Files, fetch, framed, restored, steering
from tests.db.support import new
from tests.worker.conftest import Bench
from tests.worker.support import params

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def file(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def halves(width: int = 256, height: int = 256) -> Image.Image:
    """Red on the left, blue on the right."""
    made = Image.new("RGB", (width, height), RED)
    made.paste(BLUE, (width // 2, 0, width, height))
    return made


def right(width: int = 256, height: int = 256) -> Image.Image:
    """White on the right."""
    made = Image.new("L", (width, height))
    made.paste(255, (width // 2, 0, width, height))
    return made


def ref(data: bytes, width: int = 256, height: int = 256) -> InputRef:
    return InputRef(digest=hashlib.sha256(data).hexdigest(), width=width, height=height)


IMAGE, MASK = file(halves()), file(right())
FILES = Files(IMAGE, MASK)


def start(**given: Any) -> Start:
    return Start(**{"image": ref(IMAGE), "mask": ref(MASK), "strength": 1.0, "feather": 0, **given})


def sized(drawn: tuple[int, int], delivered: tuple[int, int], **given: Any) -> Any:
    sizes = {"drawn": Size(width=drawn[0], height=drawn[1]), "delivered": Size(width=delivered[0], height=delivered[1])}
    return params(**sizes, start=start(**given))


def test_the_engine_gets_picture_mask_and_strength_at_the_drawn_size() -> None:
    wanted = sized((128, 128), (256, 256), strength=0.6)
    job = engine_job(Order(new("t1", params=wanted), POCKET, Path(), files=FILES))  # type: ignore[arg-type]
    assert (job.width, job.image.width, job.mask_image.height, job.strength) == (128, 128, 128, 0.6)
    assert [job.image.to_pil().getpixel((x, 64)) for x in (4, 124)] == [RED, BLUE]
    assert [job.mask_image.to_pil().getpixel((x, 64)) for x in (4, 124)] == [(0, 0, 0), (255, 255, 255)]


def test_what_the_model_cannot_draw_of_the_proportions_is_left_out_of_what_it_gets() -> None:
    """Drawn square, delivered wide: its place is the middle, and there it is as in the delivered picture."""
    image, _ = framed(FILES, sized((128, 128), (512, 256), resize="stretch"))
    whole = halves(512, 256).crop((128, 0, 384, 256)).resize((128, 128))
    assert [image.to_pil().getpixel((x, 64)) for x in (4, 124)] == [whole.getpixel((x, 64)) for x in (4, 124)]


def test_outside_the_mask_the_delivered_picture_is_the_one_that_was_sent() -> None:
    """Pixel for pixel, also where what was drawn is enlarged."""
    wanted = sized((128, 128), (256, 256))
    made = restored(deliver(Image.new("RGB", (128, 128), GREEN), wanted.delivered), FILES, wanted)
    assert made.crop((0, 0, 128, 256)).tobytes() == halves().crop((0, 0, 128, 256)).tobytes()
    assert made.crop((128, 0, 256, 256)).getcolors() == [(128 * 256, GREEN)]


def test_the_edge_is_as_soft_as_asked_for() -> None:
    wanted = sized((128, 128), (256, 256), feather=8)
    mixed = restored(Image.new("RGB", (256, 256), GREEN), FILES, wanted)
    assert mixed.getpixel((8, 128)) == RED
    assert 60 < mixed.getpixel((126, 128))[1] < 200


def test_what_is_transparent_is_white_in_a_picture_and_stays_behind_a_mask() -> None:
    clear = file(Image.new("RGBA", (8, 8), (255, 255, 255, 0)))
    assert decoded(clear, "init_image").getpixel((0, 0)) == (255, 255, 255)
    assert decoded(clear, "mask", mask=True).getpixel((0, 0)) == 0


async def kept(bench: Bench, data: bytes) -> None:
    await Inputs(bench.database).keep(InputRow(ref(data).digest, "image/png", len(data), 256, 256))
    await bench.storage.put(input_key(ref(data).digest), data, "image/png")


async def test_a_worker_fetches_both_files_and_delivers_one_picture(bench: Bench) -> None:
    await kept(bench, IMAGE)
    await kept(bench, MASK)
    wanted = sized((128, 128), (256, 256))
    row, _ = await bench.tasks.insert(new("t1", params=wanted))
    bench.deliver(row)
    assert await bench.ended("t1") == {"t1": State.SUCCEEDED}
    [image] = (await bench.tasks.images(["t1"]))["t1"]
    data = b"".join([part async for part in bench.storage.read(image.key)])
    left = Image.open(io.BytesIO(data)).crop((0, 0, 128, 256))
    assert left.tobytes() == halves().crop((0, 0, 128, 256)).tobytes()
    assert image.recipe["params"]["init_image"] == ref(IMAGE).name


async def test_a_task_whose_picture_is_gone_fails_and_says_so(bench: Bench) -> None:
    await kept(bench, IMAGE)
    row, _ = await bench.tasks.insert(new("t1", params=sized((128, 128), (256, 256))))
    bench.deliver(row)
    assert await bench.ended("t1") == {"t1": State.FAILED}
    assert (await bench.row("t1")).error is not None


@pytest.mark.parametrize("harm", ["gone", "changed"])
async def test_a_file_that_is_not_what_was_sent_is_refused(bench: Bench, harm: str) -> None:
    await kept(bench, IMAGE)
    key = input_key(ref(IMAGE).digest)
    await (bench.storage.delete(key) if harm == "gone" else bench.storage.put(key, b"another", "image/png"))
    with pytest.raises(NotFound):
        await fetch(bench.storage, Inputs(bench.database), start(mask=None))


def control(**given: Any) -> ControlRef:
    return ControlRef(**{"name": "edges", "image": ref(IMAGE), **given})


def test_a_controls_picture_is_framed_like_the_task_and_then_preprocessed() -> None:
    """Delivered at 256, drawn at 128: the border of red and blue is one edge, in the middle of what is drawn."""
    wanted = params(delivered=Size(width=256, height=256), drawn=Size(width=128, height=128))
    plain = steering(IMAGE, control(), wanted).to_pil()
    edges = steering(IMAGE, control(preprocessor="canny"), wanted).to_pil()
    assert [plain.getpixel((x, 64)) for x in (4, 124)] == [RED, BLUE]
    white = [x for x in range(128) if edges.getpixel((x, 64)) == (255, 255, 255)]
    assert white
    assert all(62 <= x <= 65 for x in white)


def test_what_is_left_out_of_the_drawn_picture_is_left_out_of_the_controls() -> None:
    """Delivered wide and drawn square: the middle, with the way in which the task's own picture is resized."""
    wanted = sized((128, 128), (512, 256), resize="stretch")
    assert steering(IMAGE, control(), wanted) == framed(FILES, wanted)[0]


def test_the_engine_gets_the_controls_under_names_that_only_these_files_have() -> None:
    row = LoraRow("edges", "1", "sd15", "file:", "x", "a" * 64)
    refs = (control(scale=0.5, start=0.25, end=0.75, mode=2),)
    wanted = params(controls=refs)
    order = Order(new("t1", params=wanted), POCKET, Path(), controls=((row, Path(), IMAGE),))  # type: ignore[arg-type]
    (made,) = engine_job(order).controls
    assert (made.model, made.scale, made.start, made.end, made.mode) == ("edges (aaaaaaaaaa)", 0.5, 0.25, 0.75, 2)
    assert (made.image.width, made.image.height) == (128, 128)
    assert order.added == (row,)
