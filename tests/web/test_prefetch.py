"""Tasks that name weights which are not here wait for them, whatever happens to the process that fetches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from streamapp import arrivals
from streamapp.arrivals import Arriving, Fetching
from streamapp.db import Arrivals, ModelRow, NewTask, State, TaskRow
from streamapp.models.cache import EVICTED, marked
from streamapp.models.cache import save as save_row
from streamapp.models.fetching import Fetch, Fetches
from tests.models.publisher import Publisher
from tests.models.sites import Double, file, playing, sd15_file
from tests.web.conftest import Api, Serve
from tests.worker.support import params


@pytest.fixture
async def evicted(serve: Serve) -> AsyncIterator[tuple[Api, Double]]:
    """The service, which knows a model ``dream`` whose file made room."""
    double = Double(Publisher(sd15_file()))
    async with playing(double) as url, serve(civitai_url=url, hub_url=url, allow_private_sources=True) as api:
        row = await api.runtime.fetches.once("civitai:123@456", "dream")
        (api.app.settings.data_path / "models" / row.path).unlink()
        await save_row(api.runtime.registry, marked(row, EVICTED, value=True))
        api.runtime.shelf.forget()
        yield api, double


def looking(api: Api, holder: str = "w1", fetches: Fetching | None = None) -> Arriving:
    """The loop of one process."""
    runtime = api.runtime
    return Arriving(Arrivals(runtime.database), runtime.registry, fetches or runtime.fetches, runtime.delivery, holder)


async def row_of(api: Api, task_id: str) -> TaskRow:
    """The row of a task."""
    row = await api.runtime.tasks.get(task_id)
    assert row is not None
    return row


async def until(api: Api, loop: Arriving, task_id: str, done: Callable[[TaskRow], bool]) -> TaskRow:
    """Turn after turn until the row is as wanted."""
    async with asyncio.timeout(20):
        while not done(row := await row_of(api, task_id)):
            await loop.turn()
            await asyncio.sleep(0.01)
    return row


def asked(**more: Any) -> dict[str, Any]:
    """A body that names the model which is not here."""
    return {"text": "a red apple", **more, "params": {"model": "dream", **more.get("params", {})}}


async def test_a_task_waits_for_its_model_and_is_queued_when_it_is_here(evicted: tuple[Api, Double]) -> None:
    api, _ = evicted
    answer = (await api.generate(asked())).data
    assert (answer["status"], answer["notes"]) == ("fetching", ["dream is not here and is fetched first"])
    row = await row_of(api, answer["task_id"])
    assert (row.state, row.produce_at, await api.runtime.delivery.due(10)) == (State.FETCHING, None, [])
    listed = (await api.get("/api/v1/image/tasks?status=fetching")).data["tasks"]
    assert [task["task_id"] for task in listed] == [row.id]
    row = await until(api, looking(api), row.id, lambda row: row.state is not State.FETCHING)
    assert (row.state, row.progress, row.attempts) == (State.QUEUED, 0.0, 0)
    assert [due.id for due in await api.runtime.delivery.due(10)] == [row.id]
    assert (await api.get("/api/v1/models/dream")).data["state"] == "here"
    # The next one waits for nothing.
    assert (await api.generate(asked())).data["status"] == "queued"


async def test_what_is_here_shows_as_progress(evicted: tuple[Api, Double]) -> None:
    api, _ = evicted
    task_id = (await api.generate(asked())).data["task_id"]
    loop = looking(api)
    await loop.turn()
    fetch = api.runtime.fetches.all()[0]
    fetch.bytes, fetch.total = 30, 100
    loop._wanted["model", "dream"].fetch = fetch
    await loop._tell({task_id: [("model", "dream")]})
    seen = (await api.get(f"/api/v1/image/task/{task_id}")).data
    assert (seen["status"], seen["progress"]) in {("fetching", 30.0), ("queued", 0.0)}


async def test_a_fetch_that_cannot_succeed_ends_its_tasks_with_the_reason(evicted: tuple[Api, Double]) -> None:
    api, double = evicted
    double.publisher.faults = ["403"]
    task_id = (await api.generate(asked())).data["task_id"]
    row = await until(api, looking(api), task_id, lambda row: row.state is not State.FETCHING)
    assert row.error is not None
    assert (row.state, row.error["code"]) == (State.FAILED, "not_allowed")


async def test_the_fallback_model_draws_what_cannot_be_fetched(evicted: tuple[Api, Double]) -> None:
    api, double = evicted
    double.publisher.faults = ["403"]
    body = asked(params={"fallback_model": "pocket"})
    task_id = (await api.generate(body)).data["task_id"]
    row = await until(api, looking(api), task_id, lambda row: row.state is not State.FETCHING)
    assert (row.state, row.model, row.params.model, row.history[0]["code"]) == (
        State.QUEUED, "pocket", "pocket", "not_allowed",
    )  # fmt: skip
    assert row.params.instead_of is not None
    assert row.params.instead_of.model == "dream"


class Away:
    """A site that does not answer: every fetch fails for a reason that may pass."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    async def start(self, text: str, name: str | None = None, digest: str | None = None) -> Fetch:
        """Begin, and fail."""
        self.asked.append((text, name))
        error = {"code": "unavailable", "message": "the site is away", "retryable": True}
        return Fetch("f", text, name, state="failed", error=error, ended_at=1)


async def test_what_may_pass_is_tried_again_a_few_times(
    evicted: tuple[Api, Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _ = evicted
    monkeypatch.setattr(arrivals, "PAUSE", 0.0)
    task_id, site = (await api.generate(asked())).data["task_id"], Away()
    row = await until(api, looking(api, fetches=site), task_id, lambda row: row.state is not State.FETCHING)
    assert row.error is not None
    assert (site.asked, row.error["code"]) == ([("civitai:123@456", "dream")] * arrivals.TRIES, "unavailable")


class Full(Away):
    """A disk without room until ``free`` says so."""

    def __init__(self, fetches: Fetches) -> None:
        super().__init__()
        self.fetches, self.free = fetches, False

    async def start(self, text: str, name: str | None = None, digest: str | None = None) -> Fetch:
        """Begin, and fail, or not."""
        if self.free:
            return await self.fetches.start(text, name, digest)
        fetch = await super().start(text, name, digest)
        fetch.error = {"code": "no_space", "message": "what lies there is in use", "retryable": False}
        return fetch


async def test_room_on_the_disk_is_waited_for_but_not_for_ever(
    evicted: tuple[Api, Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _ = evicted
    monkeypatch.setattr(arrivals, "PAUSE", 0.0)
    disk = Full(api.runtime.fetches)
    loop, task_id = looking(api, fetches=disk), (await api.generate(asked())).data["task_id"]
    for _ in range(arrivals.TRIES + 3):
        await loop.turn()
    assert (await row_of(api, task_id)).state is State.FETCHING
    assert len(disk.asked) > arrivals.TRIES
    disk.free = True
    assert (await until(api, loop, task_id, lambda row: row.state is not State.FETCHING)).state is State.QUEUED
    row = await api.runtime.registry.model("dream")
    assert row is not None
    await save_row(api.runtime.registry, marked(row, EVICTED, value=True))
    api.runtime.shelf.forget()
    disk.free = False
    monkeypatch.setattr(arrivals, "ROOM", 0.0)
    task_id = (await api.generate(asked())).data["task_id"]
    ended = await until(api, loop, task_id, lambda row: row.state is not State.FETCHING)
    assert ended.error is not None
    assert (ended.state, ended.error["code"]) == (State.FAILED, "no_space")


async def test_nothing_is_fetched_for_requests_where_that_is_off(serve: Serve) -> None:
    async with serve(fetch="off") as api:
        gone = ModelRow("dream", "1", "sd15", "file:", "models/dream.safetensors", "ab" * 32, 1, {EVICTED: True})
        await api.runtime.registry.add_model(gone)
        (await api.generate(asked())).refused(409, "not_here", field="model")
        reference = {"text": "a", "params": {"model": "civitai:1@2"}}
        (await api.generate(reference)).refused(404, "not_found", field="model")


async def test_another_file_than_the_one_that_was_named_is_never_drawn_with(evicted: tuple[Api, Double]) -> None:
    api, double = evicted
    task_id = (await api.generate(asked())).data["task_id"]
    known = await api.runtime.registry.models()
    double.publisher.body = sd15_file(channels=9)
    double.version["files"] = [file(double.publisher)]
    row = await until(api, looking(api), task_id, lambda row: row.state is not State.FETCHING)
    assert row.error is not None
    assert (row.state, row.error["code"], "another file" in row.error["message"]) == (State.FAILED, "not_found", True)
    # Nor when only its bytes tell.
    double.version["files"] = [file(double.publisher, hashes={})]
    task_id = (await api.generate(asked())).data["task_id"]
    row = await until(api, looking(api), task_id, lambda row: row.state is not State.FETCHING)
    assert row.state is State.FAILED
    assert await api.runtime.registry.models() == known
    assert not list((api.app.settings.data_path / "models").rglob("*.safetensors"))


async def test_another_process_goes_on_where_the_first_one_died(evicted: tuple[Api, Double]) -> None:
    api, _ = evicted
    task_id = (await api.generate(asked())).data["task_id"]
    assert await looking(api, "first").turn()
    # While the first one lives, the second one does nothing.
    assert not await looking(api, "second").turn()
    await api.runtime.fetches.close()
    await api.runtime.delivery.release("arrivals", "first")
    settings, runtime = api.app.settings, api.runtime
    fetches = Fetches(settings, runtime.registry, runtime.cache, changed=runtime.shelf.forget)
    row = await until(api, looking(api, "second", fetches), task_id, lambda row: row.state is not State.FETCHING)
    assert row.state is State.QUEUED
    await fetches.close()


async def test_who_waits_for_weights_can_be_cancelled_and_expires(evicted: tuple[Api, Double]) -> None:
    api, _ = evicted
    task_id = (await api.generate(asked())).data["task_id"]
    assert (await api.call("DELETE", f"/api/v1/image/task/{task_id}")).data["status"] == "cancelled"
    await api.runtime.tasks.insert(
        NewTask(
            id="late", user_id="local", idempotency_key=None, priority=1, family="sd15", model="dream",
            params=params(model="dream"), request={}, cost=1.0, max_attempts=3, deadline_ms=-1, fetching=True,
        )
    )  # fmt: skip
    assert await api.runtime.delivery.expire_overdue(10) == {"late"}
    assert (await row_of(api, "late")).state is State.EXPIRED
    # Neither is queued by what arrives later.
    await Arrivals(api.runtime.database).arrived([task_id, "late"])
    assert {(await row_of(api, one)).state for one in (task_id, "late")} == {State.CANCELLED, State.EXPIRED}
