"""What could not be worked off, and replays: for its owner, and for the operator of the service."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streamapp.db import Letter
from streamapp.db.letters import STATES
from streamapp.dead import parse_since, replay_since, replay_topics
from streamapp.errors import AppError, Conflict, InvalidRequest, NotFound
from streamapp.telemetry import get_logger
from web.answers import API, iso, ok
from web.auth import USER
from web.generate import read_object

log = get_logger(__name__)
MAX_ID = 200
MAX_PAGE = 200
LETTERS = f"{API}/dead_letters"


class OperatorsOnly(AppError):
    """Something that concerns every user's tasks."""

    code = "operators_only"
    status = 403


def attach(app: Any) -> None:
    """Add the routes."""
    views = Views(app)
    router = app.web.web_app.router
    router.add_get(LETTERS, views.many)
    router.add_get(f"{LETTERS}/{{letter_id}}", views.one)
    router.add_post(f"{LETTERS}/{{letter_id}}/replay", views.replay)
    router.add_delete(f"{LETTERS}/{{letter_id}}", views.drop)
    router.add_post(f"{API}/replay", views.replay_since)


class Views:
    """Handlers over the letters; other users' letters, and unreadable messages, do not exist for a plain user."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def _scope(self, request: web.Request) -> str | None:
        """Whose letters this request may see; ``None``: everybody's."""
        settings, user = self._app.settings, request[USER]
        return None if not settings.api_keys or user in settings.operators else str(user)

    async def many(self, request: web.Request) -> web.Response:
        """Letters, newest first, without the bytes of unreadable messages."""
        query = request.query
        if unknown := sorted(set(query) - {"state", "limit", "before"}):
            raise InvalidRequest(f"{unknown[0][:60]} is not a parameter here; known: state, limit, before")
        state, limit = _state(query.get("state", "open")), _limit(query.get("limit", "50"))
        scope = self._scope(request)
        found = await self._app.runtime.letters.page(scope, state, query.get("before"), limit)
        last = found[-1].id if len(found) == limit else None
        return ok({"letters": [letter_json(letter) for letter in found], "next_before": last})

    async def one(self, request: web.Request) -> web.Response:
        """One letter with its history, and the bytes of an unreadable message in base64."""
        return ok(letter_json(await self._letter(request), whole=True))

    async def replay(self, request: web.Request) -> web.Response:
        """Queue the task again: the same id, attempts from zero."""
        letter = await self._letter(request)
        outcome = (await self._app.runtime.letters.replay([letter.id], self._scope(request)))[letter.id]
        if outcome == "unreadable":
            raise Conflict(
                "a message that nobody can read names no task to draw, and a task that it was for is delivered again "
                "by itself: drop the letter",
                id=letter.id,
            )
        if outcome != "replayed":
            raise Conflict(f"{letter.id}: {outcome}", id=letter.id)
        return ok({"id": letter.id, "task_id": letter.task_id, "outcome": outcome}, "queued again")

    async def drop(self, request: web.Request) -> web.Response:
        """Close the letter: its task stays failed, and says that it was dropped."""
        letter = await self._letter(request)
        outcome = (await self._app.runtime.letters.drop([letter.id], self._scope(request)))[letter.id]
        if outcome != "dropped":
            raise Conflict(f"{letter.id}: {outcome}", id=letter.id)
        return ok({"id": letter.id, "task_id": letter.task_id, "outcome": outcome}, "dropped")

    async def replay_since(self, request: web.Request) -> web.Response:
        """Read task topics again and queue what did not succeed."""
        if self._scope(request) is not None:
            raise OperatorsOnly("replaying topics is for operators: STREAMAPP_OPERATORS names whose keys may")
        body = await read_object(request)
        if unknown := sorted(set(body) - {"since", "topics", "cancelled", "dry_run"}):
            raise InvalidRequest(f"{unknown[0][:60]} is not a field here; known: since, topics, cancelled, dry_run")
        names = body.get("topics", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidRequest("topics must be a list of names", field="topics")
        since, settings, runtime = body.get("since"), self._app.settings, self._app.runtime
        if not isinstance(since, str):
            raise InvalidRequest("since is missing: a time, or a span such as 2h", field="since")
        found = await replay_since(
            runtime.admin,
            runtime.tasks,
            replay_topics(settings, names),
            parse_since(since),
            cancelled=_flag(body, "cancelled"),
            dry_run=_flag(body, "dry_run"),
            limit=settings.max_message_bytes,
        )
        log.info("topics read again", action="replayed", since=since, user=request[USER], **found.as_dict())
        return ok(found.as_dict())

    async def _letter(self, request: web.Request) -> Letter:
        letter_id = request.match_info["letter_id"]
        found: Letter | None = None
        if len(letter_id) <= MAX_ID:
            found = await self._app.runtime.letters.get(letter_id, self._scope(request))
        if found is None:
            raise NotFound(f"there is no dead letter {letter_id[:MAX_ID]}", id=letter_id[:MAX_ID])
        return found


def letter_json(letter: Letter, *, whole: bool = False) -> dict[str, Any]:
    """A letter as the API and the command line show it; ``raw`` is base64 of the bytes, at most 512 KiB of them."""
    shown: dict[str, Any] = {
        "id": letter.id,
        "task_id": letter.task_id,
        "state": letter.state,
        "reason": letter.reason,
        "message": letter.message,
        "at": iso(letter.at),
        "ended_at": iso(letter.ended_at),
        "user_id": letter.user_id,
        "attempts": letter.attempts,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "size": letter.size,
        "history": list(letter.history),
    }
    return {**shown, "raw": letter.raw} if whole else shown


def _state(name: str) -> str | None:
    if name == "all":
        return None
    if name not in STATES:
        raise InvalidRequest(f"state must be {', '.join(STATES)} or all, not {name[:40]!r}", field="state")
    return name


def _limit(text: str) -> int:
    if len(text) > 6 or not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be 1 to {MAX_PAGE}, not {text[:20]!r}", field="limit")
    return int(text)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", field=name)
    return value
