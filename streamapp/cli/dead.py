"""``dead`` and ``replay``: what could not be worked off, and giving it another chance.

Both work on the database of the settings, with or without a running service, and see every user's tasks. With
``--url`` they ask that service instead, as the user of the first API key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamapp.cli.connect import json_option, open_client, print_json, print_rows, url_option

if TYPE_CHECKING:
    from streamapp.db import Database

T = TypeVar("T")
#: Reading a week of topics takes a while, in seconds.
PATIENCE = 3_600.0
API = "/api/v1"

ids = click.argument("letter_ids", nargs=-1, metavar="[ID]…")
every = click.option("--all", "all_", is_flag=True, help="Every open letter.")


@click.group()
def dead() -> None:
    """List, show, replay or drop what could not be worked off.

    A task that failed for good, or a message that nobody could read. ID is the task's id, or topic:partition:offset
    of a message.
    """


@dead.command("list")
@click.option("--state", type=click.Choice(["open", "replayed", "dropped", "all"]), default="open", show_default=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@url_option
@json_option
def list_letters(state: str, limit: int, url: str | None, as_json: bool) -> None:
    """List dead letters, newest first."""
    rows = _list(url, state, limit)
    if as_json:
        print_json(rows)
        return
    shown = [(row["id"], row["state"], row["at"], row["attempts"], row["reason"], row["message"][:60]) for row in rows]
    print_rows(("ID", "STATE", "SINCE", "ATTEMPTS", "REASON", "MESSAGE"), shown)


@dead.command("show")
@click.argument("letter_id", metavar="ID")
@url_option
@json_option
def show_letter(letter_id: str, url: str | None, as_json: bool) -> None:
    """Show one with its history, and the bytes of an unreadable message in base64."""
    if url:
        body = _call(url, "GET", f"/dead_letters/{letter_id}")
    else:
        body = _with_database(lambda database: _one(database, letter_id))
    if as_json:
        print_json(body)
        return
    for name, value in body.items():
        if name != "history" and value is not None:
            click.echo(f"{name:<12}{value}")
    for entry in body["history"]:
        facts = ", ".join(f"{name} {value}" for name, value in entry.items() if name not in {"message", "retryable"})
        click.echo(f"{'history':<12}{facts}: {entry.get('message', '')}")


@dead.command("replay")
@ids
@every
@url_option
@json_option
def replay_letters(letter_ids: tuple[str, ...], all_: bool, url: str | None, as_json: bool) -> None:
    """Queue tasks again: the same ids, attempts counted from zero."""
    _act("replay", "replayed", letter_ids, all_, url, as_json)


@dead.command("drop")
@ids
@every
@url_option
@json_option
def drop_letters(letter_ids: tuple[str, ...], all_: bool, url: str | None, as_json: bool) -> None:
    """Close letters for good: their tasks stay failed and say that they were dropped."""
    _act("drop", "dropped", letter_ids, all_, url, as_json)


@click.command()
@click.argument("task_ids", nargs=-1, metavar="[TASK_ID]…")
@click.option(
    "--since", metavar="TIME", help="Read the task topics again from this time on: 2026-11-23T08:30Z, 90m, 2h, 1d."
)
@click.option("--topic", "names", multiple=True, help="Only this task topic; may be given several times.")
@click.option("--cancelled", is_flag=True, help="Queue cancelled tasks again too.")
@click.option("--dry-run", is_flag=True, help="Count only.")
@url_option
@json_option
def replay(
    *,
    task_ids: tuple[str, ...],
    since: str | None,
    names: tuple[str, ...],
    cancelled: bool,
    dry_run: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Queue ended tasks again: those that are named, or what topics held since a time.

    With --since every message that the broker still has is read again, and each task that failed or expired is
    queued under its old id with attempts counted from zero. Succeeded tasks are left alone; so are cancelled ones,
    unless --cancelled is given, and those that were dropped; queued and running ones come to their end anyway.

    With an embedded broker in use the running service does the reading.
    """
    if bool(task_ids) == (since is not None):
        raise click.UsageError("name tasks, or give --since TIME")
    if since is None:
        if names or dry_run or cancelled:
            raise click.UsageError("--topic, --cancelled and --dry-run go with --since")
        _named(task_ids, as_json)
        return
    counts = _since(url, {"since": since, "topics": list(names), "cancelled": cancelled, "dry_run": dry_run})
    if as_json:
        print_json(counts)
        return
    for name, count in counts.items():
        would = " (would be)" if dry_run and name == "requeued" else ""
        click.echo(f"{name:<12}{count}{would}")


def _named(task_ids: tuple[str, ...], as_json: bool) -> None:
    async def work(database: Database) -> dict[str, str]:
        from streamapp.db import Tasks

        return {task: str(state) for task, state in (await Tasks(database).replay_many(task_ids)).items()}

    done = _with_database(work)
    if as_json:
        print_json(done)
    else:
        for task_id, outcome in done.items():
            words = "queued again" if outcome == "replayed" else f"left alone: {outcome}"
            click.echo(f"{task_id} {words}")
    if any(outcome != "replayed" for outcome in done.values()):
        raise SystemExit(1)


def _since(url: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """Read topics here, or have the service do it that holds the embedded log."""
    from streamapp.broker.embedded.lock import LogInUse

    if url is None:
        try:
            return _with_database(lambda database: _read_topics(database, body))
        except LogInUse:
            pass  # the running service has it
    return _call(url, "POST", "/replay", body)


async def _read_topics(database: Database, body: dict[str, Any]) -> dict[str, int]:
    from streamapp.broker.admin import open_admin
    from streamapp.db import Tasks
    from streamapp.dead import parse_since, replay_since, replay_topics
    from streamapp.settings import load_settings

    settings = load_settings()
    since, names = parse_since(body["since"]), replay_topics(settings, body["topics"])
    admin = open_admin(settings)
    await admin.start()
    try:
        found = await replay_since(
            admin, Tasks(database), names, since, cancelled=body["cancelled"], dry_run=body["dry_run"],
            limit=settings.max_message_bytes,
        )  # fmt: skip
    finally:
        await admin.close()
    return found.as_dict()


def _list(url: str | None, state: str, limit: int) -> list[dict[str, Any]]:
    """Pages of letters until there are ``limit``."""
    if url is None:
        return _with_database(lambda database: _stored(database, state, limit))
    rows: list[dict[str, Any]] = []
    query = {"state": state, "limit": str(min(limit, 200))}
    while len(rows) < limit:
        page = _call(url, "GET", "/dead_letters", query=query)
        rows += page["letters"]
        if page["next_before"] is None:
            break
        query["before"] = page["next_before"]
    return rows[:limit]


async def _stored(database: Database, state: str, limit: int) -> list[dict[str, Any]]:
    from streamapp.db import DeadLetters
    from web.dead_letters import letter_json

    found = await DeadLetters(database).page(None, None if state == "all" else state, limit=limit)
    return [letter_json(letter) for letter in found]


async def _one(database: Database, letter_id: str) -> dict[str, Any]:
    from streamapp.db import DeadLetters
    from streamapp.errors import NotFound
    from web.dead_letters import letter_json

    letter = await DeadLetters(database).get(letter_id)
    if letter is None:
        raise NotFound(f"there is no dead letter {letter_id}")
    return letter_json(letter, whole=True)


def _act(what: str, done: str, letter_ids: tuple[str, ...], all_: bool, url: str | None, as_json: bool) -> None:
    """Replay or drop; exits 1 when a letter was left as it is."""
    if bool(letter_ids) == all_:
        raise click.UsageError("name letters, or give --all")
    chosen = tuple(row["id"] for row in _list(url, "open", 10_000)) if all_ else letter_ids
    if url:
        outcomes = {letter_id: _ask(url, what, letter_id) for letter_id in chosen}
    else:
        outcomes = _with_database(lambda database: _change(database, what, chosen))
    if all_:  # what cannot be drawn again was not asked for by name
        outcomes = {letter_id: outcome for letter_id, outcome in outcomes.items() if outcome != "unreadable"}
    if as_json:
        print_json(outcomes)
    else:
        for letter_id, outcome in outcomes.items():
            click.echo(f"{letter_id} {outcome}")
    if any(outcome != done for outcome in outcomes.values()):
        raise SystemExit(1)


async def _change(database: Database, what: str, letter_ids: tuple[str, ...]) -> dict[str, str]:
    from streamapp.db import DeadLetters

    letters = DeadLetters(database)
    change = letters.replay if what == "replay" else letters.drop
    outcomes: dict[str, str] = {}
    for start in range(0, len(letter_ids), 500):
        outcomes |= await change(letter_ids[start : start + 500])
    return outcomes


def _ask(url: str, what: str, letter_id: str) -> str:
    """One letter over HTTP, as an outcome."""
    from streamapp.errors import Conflict, NotFound

    path = f"/dead_letters/{letter_id}"
    try:
        body = _call(url, "POST", f"{path}/replay") if what == "replay" else _call(url, "DELETE", path)
    except NotFound:
        return "missing"
    except Conflict as error:
        return error.message.removeprefix(f"{letter_id}: ")
    return str(body["outcome"])


def _call(url: str | None, method: str, path: str, body: Any = None, query: Any = None) -> dict[str, Any]:
    async def call() -> dict[str, Any]:
        async with open_client(url, timeout_s=PATIENCE) as client:
            return await client.call(method, f"{API}{path}", body=body, query=query)

    return asyncio.run(call())


def _with_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Run ``work`` over the database of the settings."""
    from streamapp.db import open_database
    from streamapp.settings import load_settings

    async def run() -> T:
        database = open_database(load_settings().database_url)
        await database.start()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())
