"""``submit``, ``tasks``, ``show`` and ``cancel``: what a user does, over the HTTP API."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamapp.cli.connect import json_option, print_json, print_rows, with_client

if TYPE_CHECKING:
    from streamapp.client import Client, Task

NO_PICTURE = 4
#: Where a number behind a colon is a port.
ADDRESS = r"https?://[^/]+"
#: What `--control` takes behind the picture and its scale.
PREPROCESSORS = ("none", "canny", "depth", "pose")
#: What `show` prints of a task, in this order; --json prints everything.
SHOWN = (
    "status",
    "progress",
    "queue_position",
    "estimated_time",
    "text",
    "model",
    "priority",
    "drawn_at",
    "delivered_at",
    "submitted_at",
    "started_at",
    "ended_at",
    "attempts",
    "worker_id",
)
STATES = ("fetching", "queued", "running", "succeeded", "failed", "cancelled", "expired")


class Lora(click.ParamType):
    """``NAME`` or ``NAME:WEIGHT``; the name itself may hold colons, as references do."""

    name = "name:weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The LoRA as the API takes it."""
        name, colon, weight = str(value).rpartition(":")
        # The number behind the name of the site is that of a model.
        if not colon or name.lower().endswith("civitai"):
            return {"name": str(value), "weight": 1.0}
        try:
            return {"name": name, "weight": float(weight)}
        except ValueError:
            if weight.endswith(".safetensors") or weight.startswith("//") or "@" in weight:
                return {"name": str(value), "weight": 1.0}
            self.fail(f"{value!r} is not NAME or NAME:WEIGHT, such as ink-style:0.8", param, ctx)


class Control(click.ParamType):
    """``MODEL=PICTURE[:SCALE][:PREPROCESSOR]``; the picture may be an address, which holds colons."""

    name = "model=picture"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The ControlNet as the API takes it."""
        model, given, rest = str(value).partition("=")
        if not (model and given and rest):
            self.fail(f"{value!r} is not MODEL=PICTURE, such as canny=photo.png:0.8:canny", param, ctx)
        control: dict[str, Any] = {"model": model}
        before, colon, last = rest.rpartition(":")
        if colon and last in PREPROCESSORS:
            control["preprocessor"], rest = last, before
        before, colon, last = rest.rpartition(":")
        if colon and before != "sha256" and re.fullmatch(r"\d*\.?\d+", last) and not re.fullmatch(ADDRESS, rest):
            control["scale"], rest = float(last), before
        return {**control, "image": Picture().convert(rest, param, ctx)}


class Pixels(click.ParamType):
    """``WIDTHxHEIGHT``."""

    name = "wxh"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The size in the form of the API's ``resolution``."""
        match = re.fullmatch(r"(\d{1,5})\s*[x×X*]\s*(\d{1,5})", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not WIDTHxHEIGHT, such as 512x512", param, ctx)
        return f"{match[1]}x{match[2]}"


class Picture(click.ParamType):
    """A picture's file, its address, or the name of one that is kept there."""

    name = "file|url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The picture as the API takes it."""
        text = str(value)
        if text.startswith(("http://", "https://", "sha256:", "data:")):
            return text
        try:
            return base64.b64encode(Path(text).read_bytes()).decode()
        except OSError as error:
            self.fail(f"{text} cannot be read: {error.strerror}", param, ctx)


@click.command()
@click.argument("text")
@click.option("--model", help="Model by its name; see `streamapp models`.")
@click.option("--lora", "loras", type=Lora(), multiple=True, help="LoRA and its weight; may be given several times.")
@click.option("--size", "resolution", type=Pixels(), help="Size of the pictures, such as 512x512.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps.")
@click.option("--guidance", "cfg_scale", type=float, help="How strictly the prompt is followed.")
@click.option("--sampler", help="Sampler by its name.")
@click.option("--clip-skip", type=click.IntRange(1), help="Layer of the text encoder that prompts are read from.")
@click.option("--seed", type=click.IntRange(0), help="Start of the random numbers; the same seed, the same picture.")
@click.option("--image", "init_image", type=Picture(), help="Picture to start from: a file, an address or sha256:…")
@click.option("--mask", type=Picture(), help="White where the picture is drawn anew; given like --image.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True), help="How far the picture is redrawn.")
@click.option("--control", "controls", type=Control(), multiple=True, help="ControlNet: MODEL=FILE[:SCALE][:canny].")
@click.option("--n", "batch_size", type=click.IntRange(1), help="How many pictures.")
@click.option("--negative", "negative_text", help="What the pictures should not show.")
@click.option("--style", help="Name of a style that adds its words.")
@click.option("--priority", type=click.IntRange(0, 3), help="0 is most urgent, 3 is batch work.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait, show progress and save the pictures.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out"), show_default=True)
@json_option
@with_client
async def submit(
    client: Client, text: str, wait: bool, out: Path, as_json: bool, priority: int | None, **params: Any
) -> None:
    """Draw TEXT and save the pictures."""
    given = {name: value for name, value in params.items() if value not in (None, ())}
    body: dict[str, Any] = {"text": text, "params": given}
    if priority is not None:
        body["priority"] = priority
    task = await client.submit(body)
    if not wait:
        print_json(task.body) if as_json else click.echo(task.id)
        return
    task = await _watch(client, task, text, quiet=as_json)
    files = await client.download(task, out) if task.status == "succeeded" else []
    if as_json:
        print_json({**task.body, "files": [str(path) for path in files]})
    else:
        for path in files:
            click.echo(path)
        for note in _notes(task):
            click.echo(f"note: {note}", err=True)
    if task.status != "succeeded":
        click.echo(f"{task.id} {task.status}: {task.error or 'no reason given'}", err=True)
        raise SystemExit(NO_PICTURE)


@click.command()
@click.option("--status", type=click.Choice(STATES), help="Only tasks in this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@json_option
@with_client
async def tasks(client: Client, status: str | None, limit: int, as_json: bool) -> None:
    """List the newest tasks."""
    found = await client.tasks(status=status, limit=limit)
    if as_json:
        print_json([task.body for task in found])
        return
    rows = [(task.id, task.status, f"{task.progress:.0f} %", _short(task)) for task in found]
    print_rows(("TASK", "STATE", "DONE", "TEXT"), rows)


@click.command()
@click.argument("task_id")
@json_option
@with_client
async def show(client: Client, task_id: str, as_json: bool) -> None:
    """Show one task.

    State, progress, pictures and timings; with --json its exact recipe too.
    """
    task = await client.show(task_id)
    if as_json:
        print_json(task.body)
        return
    rows: list[tuple[Any, ...]] = [("task", task.id)]
    rows += [(name, task.body[name]) for name in SHOWN if task.body.get(name) not in (None, [], {})]
    rows += [(f"{stage} s", seconds) for stage, seconds in (task.body.get("timings") or {}).items()]
    rows += [("note", note) for note in _notes(task)]
    rows += [("error", task.error)] if task.error else []
    rows += [("image", address) for address in task.images]
    for name, value in rows:
        click.echo(f"{name:<16}{value}")


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID…")
@json_option
@with_client
async def cancel(client: Client, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks; a running one stops between two steps."""
    ended = [await client.cancel(task_id) for task_id in task_ids]
    if as_json:
        print_json([task.body for task in ended])
        return
    for task in ended:
        click.echo(f"{task.id} {task.body.get('outcome', task.status)}")


async def _watch(client: Client, task: Task, text: str, *, quiet: bool) -> Task:
    """Wait for the end behind a progress bar; Ctrl-C leaves the task running and says so."""
    import asyncio

    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed} {unit}"
    with tqdm(total=100, desc=text[:40], bar_format=form, disable=True if quiet else None, file=sys.stderr) as bar:

        def seen(now: Task) -> None:
            bar.n = min(now.progress, 100.0)
            bar.unit = now.status
            bar.refresh()

        try:
            ended = await client.wait(task.id, seen=seen)
        except asyncio.CancelledError:
            bar.close()
            click.echo(f"{task.id} goes on; `streamapp show {task.id}` or `streamapp cancel {task.id}`", err=True)
            raise
        seen(ended)
    return ended


def _notes(task: Task) -> list[str]:
    notes = task.body.get("notes") or []
    return [str(note) for note in notes] if isinstance(notes, list | tuple) else [str(notes)]


def _short(task: Task) -> str:
    text = str(task.body.get("text") or "")
    return text if len(text) <= 48 else f"{text[:47]}…"
