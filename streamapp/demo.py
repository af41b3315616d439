"""``make demo``: start the whole service on this machine, draw a few pictures through its HTTP API, stop it.

A real run of the real thing: the service is a child process as ``streamapp up`` starts it, and everything asked
of it goes through :mod:`streamapp.client`. Exits 0 when every picture is saved and the service stopped cleanly.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from streamapp.client import Client, Task
from streamapp.errors import AppError


@dataclass(frozen=True)
class Order:
    """What is asked for: words, LoRAs by name with their weights, and a caption in letters that every font has."""

    text: str
    seed: int
    caption: str
    loras: Mapping[str, float] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """As the API takes it."""
        loras = [{"name": name, "weight": weight} for name, weight in self.loras.items()]
        return {"text": self.text, "params": {"seed": self.seed, **({"loras": loras} if loras else {})}}


#: Words that the shipped model has learnt, with seeds that show it well.
PROMPTS: tuple[Order, ...] = (
    Order("a cute panda", 2, "a cute panda"),
    Order("a purple butterfly on a yellow background", 3, "a purple butterfly on yellow"),
    Order("a cat and a dog", 7, "a cat and a dog"),
    Order("老虎", 5, '"tiger" in Chinese'),
    Order(
        "a strawberry, masterpiece, best quality, highly detailed, 8k, sharp focus, intricate, award winning, "
        "volumetric lighting, by a famous artist",
        1,
        "a strawberry, masterpiece, best ...",
    ),
    Order("a rocket on a blue background", 1, "a rocket on a blue background"),
    Order("a panda", 6, "a panda, ink 0.8 and duotone 0.5", {"ink": 0.8, "duotone": 0.5}),
    Order("a fox", 1, "a fox, duotone", {"duotone": 1.0}),
)
START_LIMIT_S, TASK_LIMIT_S, STOP_LIMIT_S = 180.0, 120.0, 45.0
TAIL_LINES = 30
CELL, CAPTION = 256, 28


class DemoFailed(Exception):
    """One sentence on what went wrong."""


@dataclass(frozen=True)
class Picture:
    """What the sheet says below a picture, and its file."""

    caption: str
    path: Path


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out"), show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data/demo"), show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: 8000 when free, else any free one.")
def main(out: Path, data_dir: Path, port: int) -> None:
    """Start the service, draw eight pictures, save them, stop the service."""
    try:
        asyncio.run(demo(out.absolute(), data_dir.absolute(), port or free_port()))
    except (DemoFailed, AppError) as error:
        log = data_dir / "service.log"
        click.echo(f"\nThe demo failed: {error}\n\nLast lines of {log}:\n{tail(log)}", err=True)
        raise SystemExit(1) from error


async def demo(out: Path, data_dir: Path, port: int, prompts: Sequence[Order] = PROMPTS) -> list[Picture]:
    """The whole story; returns what was drawn.

    Raises:
        DemoFailed: when the service does not start, a task ends without a picture, or the service does not stop.
        AppError: when the API answers with an error.
    """
    url = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    service = await start_service(data_dir, port)
    try:
        async with Client(url) as client:
            await until_ready(service, client)
            click.echo(f"The service is up after {time.monotonic() - began:.1f} s. Status page: {url}/\n")
            pictures = await draw_all(client, out, prompts)
    finally:
        code = await stop_service(service)
    if code != 0:
        raise DemoFailed(f"the service ended with exit code {code} instead of 0")
    sheet = out / "sheet.png"
    await asyncio.to_thread(contact_sheet, pictures, sheet)
    click.echo(f"\nPictures in {out}:")
    for picture in pictures:
        click.echo(f"  {picture.path.name:<52}{picture.caption}")
    click.echo(f"  {sheet.name:<52}all of them\n")
    click.echo(f"The service is stopped again. `make up` keeps it running, with the status page at {url}/")
    return pictures


async def start_service(data_dir: Path, port: int) -> asyncio.subprocess.Process:
    """``streamapp up`` as a child that depends on nothing of this shell's STREAMAPP_* settings."""
    await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("STREAMAPP_")}
    settings = {
        "STREAMAPP_BROKER": "embedded://",
        "STREAMAPP_DATABASE": "",
        "STREAMAPP_STORAGE": "",
        "STREAMAPP_DATA_DIR": str(data_dir),
        "STREAMAPP_HOST": "127.0.0.1",
        "STREAMAPP_PORT": str(port),
        "STREAMAPP_ENGINE": os.environ.get("STREAMAPP_ENGINE", "process"),
        "STREAMAPP_DEVICE": os.environ.get("STREAMAPP_DEVICE", "cpu"),
    }
    log = await asyncio.to_thread((data_dir / "service.log").open, "wb")
    with log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamapp", "up", env={**mine, **settings}, stdout=log, stderr=log
        )


async def until_ready(service: asyncio.subprocess.Process, client: Client) -> None:
    """Wait until the service takes work; a service that dies meanwhile is a failure at once."""
    began = time.monotonic()
    with tqdm(bar_format="starting the service {elapsed}", disable=None, leave=False) as clock:
        while not await client.ready():
            if service.returncode is not None:
                raise DemoFailed(f"the service ended at start with exit code {service.returncode}")
            if time.monotonic() - began > START_LIMIT_S:
                raise DemoFailed(f"the service was not ready after {START_LIMIT_S:.0f} s")
            clock.update()
            await asyncio.sleep(0.1)


async def draw_all(client: Client, out: Path, prompts: Sequence[Order]) -> list[Picture]:
    """Submit everything at once, so that the engine batches it; one progress bar each."""
    jobs = [draw(client, order, out, position) for position, order in enumerate(prompts)]
    pictures = await asyncio.gather(*jobs)
    return list(pictures)


async def draw(client: Client, order: Order, out: Path, position: int) -> Picture:
    """One picture from submit to file."""
    form = "{desc:<44} {percentage:3.0f}% |{bar:24}| {elapsed} {unit}"
    # Only a terminal can move its cursor: elsewhere one line per picture says that it is there.
    with tqdm(total=100, desc=order.caption, position=position, bar_format=form, mininterval=0, disable=None) as bar:
        hidden = bar.disable

        def seen(task: Task) -> None:
            bar.n = max(bar.n, min(task.progress, 100.0))
            bar.unit = task.status
            bar.refresh()

        task = await client.submit(order.body)
        seen(task)
        task = await client.wait(task.id, seen=seen, timeout_s=TASK_LIMIT_S)
        seen(task)
    if hidden:
        click.echo(f"{order.caption}: {task.status}")
    if task.status != "succeeded":
        raise DemoFailed(f"{order.text!r} ended {task.status}: {task.error or 'no reason given'}")
    (path,) = await client.download(task, out, name=re.sub(r"[^a-z0-9]+", "-", order.caption.lower()).strip("-"))
    return Picture(order.caption, path)


async def stop_service(service: asyncio.subprocess.Process) -> int:
    """SIGTERM, and SIGKILL for one that does not listen; the exit code."""
    if service.returncode is None:
        service.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            return await service.wait()
    except TimeoutError:
        service.kill()
        return await service.wait()


def contact_sheet(pictures: Sequence[Picture], path: Path, columns: int = 4) -> None:
    """All pictures on one, each with its caption below."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, picture in enumerate(pictures):
        x, y = index % columns * CELL, index // columns * (CELL + CAPTION)
        with Image.open(picture.path) as image:
            sheet.paste(image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
        pen.text((x + CELL / 2, y + CELL + CAPTION / 2), picture.caption, fill="black", font=font, anchor="mm")
    sheet.save(path, optimize=True)


def free_port() -> int:
    """8000, the API's own, when nobody has it; else any free one."""
    for port in (8000, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no free port on 127.0.0.1")


def tail(log: Path) -> str:
    """The last lines of the service's log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(none)"
    return "\n".join(lines[-TAIL_LINES:])


if __name__ == "__main__":
    main()
