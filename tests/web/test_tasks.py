"""One task, many, and cancelling: what a user sees of their own, and nothing of others'."""

from __future__ import annotations

import pytest

from streamapp.db import State
from tests.web.conftest import Api, Broken, Serve

TASK = "/api/v1/image/task"


async def test_a_task_shows_its_place_in_the_queue(api: Api) -> None:
    first, urgent = await api.submitted(), await api.submitted(priority="P0")
    third = await api.submitted()
    places = {
        task_id: (await api.get(f"{TASK}/{task_id}")).data["queue_position"] for task_id in (first, urgent, third)
    }
    assert places == {urgent: 0, first: 1, third: 2}
    await api.claimed(urgent)
    shown = (await api.get(f"{TASK}/{urgent}")).data
    assert (shown["status"], shown["queue_position"], shown["worker_id"], shown["attempts"]) == (
        "running",
        None,
        "w1",
        1,
    )


async def test_a_finished_task_shows_its_picture_and_recipe(api: Api) -> None:
    task_id = await api.submitted(params={"seed": 7})
    await api.ended(task_id, timings={"denoise": 0.25})
    shown = (await api.get(f"{TASK}/{task_id}")).data
    assert (shown["status"], shown["progress"], shown["timings"]) == ("succeeded", 100.0, {"denoise": 0.25})
    [image] = shown["images"]
    assert (image["index"], image["seed"], image["width"]) == (0, 7, 128)
    assert image["url"].startswith("/files/images/")
    assert shown["recipe"]["params"]["seed"] == 7
    assert shown["started_at"] <= shown["ended_at"]


async def test_a_failed_task_says_why(api: Api) -> None:
    task_id = await api.submitted()
    await api.ended(task_id, State.FAILED, error={"code": "engine_crashed", "message": "it died three times"})
    shown = (await api.get(f"{TASK}/{task_id}")).data
    assert (shown["status"], shown["error"]["code"], shown["images"]) == ("failed", "engine_crashed", [])
    assert shown["progress"] < 100


@pytest.mark.parametrize("task_id", ["img-20200101-nothing", "x" * 500, "..", "%00", "a%27%20or%201=1"])
async def test_a_task_that_is_not_there_is_not_found(api: Api, task_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await api.call(method, f"{TASK}/{task_id}")
        answer.refused(404, "not_found")


async def test_pages_go_from_new_to_old(api: Api) -> None:
    ids = [await api.submitted(text=f"apple {number}") for number in range(5)]
    await api.ended(ids[1])
    first = (await api.get("/api/v1/image/tasks?limit=2")).data
    second = (await api.get(f"/api/v1/image/tasks?limit=2&before={first['next_before']}")).data
    last = (await api.get(f"/api/v1/image/tasks?limit=2&before={second['next_before']}")).data
    shown = [task["task_id"] for page in (first, second, last) for task in page["tasks"]]
    assert shown == ids[::-1]
    assert last["next_before"] is None
    done = (await api.get("/api/v1/image/tasks?status=succeeded")).data["tasks"]
    assert [task["task_id"] for task in done] == [ids[1]]
    assert len(done[0]["images"]) == 1


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "1 to 200"),
        ("limit=201", "1 to 200"),
        ("limit=x", "1 to 200"),
        ("limit=٣", "1 to 200"),
        ("status=done", "queued, running"),
        ("page=2", "page is not a parameter here"),
        (f"before={'x' * 100}", "must be a task id"),
    ],
)
async def test_a_wrong_query_is_refused(api: Api, query: str, says: str) -> None:
    assert says in (await api.get(f"/api/v1/image/tasks?{query}")).refused(400, "invalid_request")


async def test_cancel_says_which_way_it_went(api: Api) -> None:
    queued, running, done = await api.submitted(), await api.submitted(), await api.submitted()
    await api.claimed(running)
    await api.ended(done)

    answer = await api.call("DELETE", f"{TASK}/{queued}")
    assert (answer.data["outcome"], answer.data["status"]) == ("cancelled", "cancelled")
    again = await api.call("DELETE", f"{TASK}/{queued}")
    assert (again.data["outcome"], again.json["message"]) == ("cancelled", "cancelled before")

    answer = await api.call("DELETE", f"{TASK}/{running}")
    assert (answer.data["outcome"], answer.data["status"]) == ("cancelling", "running")
    assert (await api.get(f"{TASK}/{running}")).data["cancel_requested"] is True

    answer = await api.call("DELETE", f"{TASK}/{done}")
    assert "has succeeded already" in answer.refused(409, "conflict")
    assert (await api.get(f"{TASK}/{done}")).data["status"] == "succeeded"


async def test_users_see_their_own_tasks_only(serve: Serve) -> None:
    async with serve(api_keys=("ana:correct-horse-1", "ben:correct-horse-2")) as api:
        ana = {"Authorization": "Bearer correct-horse-1"}
        ben = {"X-API-Key": "ben:correct-horse-2"}
        task_id = (await api.generate(headers=ana)).data["task_id"]
        assert (await api.get(f"{TASK}/{task_id}", headers=ana)).data["task_id"] == task_id
        (await api.get(f"{TASK}/{task_id}", headers=ben)).refused(404, "not_found")
        (await api.get(f"{TASK}/{task_id}/events", headers=ben)).refused(404, "not_found")
        (await api.call("DELETE", f"{TASK}/{task_id}", headers=ben)).refused(404, "not_found")
        assert (await api.get("/api/v1/image/tasks", headers=ben)).data["tasks"] == []
        # The same key of two users is two tasks.
        keyed = {"text": "a red apple", "idempotency_key": "order-1"}
        ids = {(await api.generate(keyed, headers=who)).data["task_id"] for who in (ana, ben)}
        assert len(ids) == 2


async def test_where_keys_are_set_the_api_wants_one(serve: Serve) -> None:
    async with serve(api_keys=("correct-horse-1",)) as api:
        for headers in ({}, {"Authorization": "Bearer wrong-horse"}, {"Authorization": "Basic correct-horse-1"}):
            answer = await api.get("/api/v1/status", headers=headers)
            answer.refused(401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await api.get("/api/v1/status", headers={"X-API-Key": "correct-horse-1"})).status == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz"):
            assert (await api.get(path)).status == 200


async def test_without_the_database_everything_says_so(api: Api, broken: Broken) -> None:
    task_id = await api.submitted()
    broken()
    for method, path in (("GET", f"{TASK}/{task_id}"), ("DELETE", f"{TASK}/{task_id}"), ("GET", "/api/v1/image/tasks")):
        answer = await api.call(method, path)
        answer.refused(503, "unavailable")
        assert "Retry-After" in answer.headers
