"""Webhooks as users and operators meet them: at submit, in what arrives, in the task, in the settings."""

from __future__ import annotations

import asyncio
import base64
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from streamapp.callbacks import signing_secrets
from streamapp.db import State
from streamapp.errors import ConfigError, InvalidRequest
from streamapp.settings import Settings, load_settings
from streamapp.submit import Submission, _check
from tests.callbacks.conftest import Receiver, until
from tests.web.conftest import Api, Serve, serve

__all__ = ["serve"]

TASK = "/api/v1/image/task"
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


async def sending(api: Api, receiver: Receiver, count: int) -> list[dict[str, Any]]:
    """Run what the process runs in the background until so many webhooks arrived; their bodies."""
    work = [asyncio.create_task(make()) for make in api.app.background]
    try:
        await until(lambda: len(receiver.got) >= count)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    return [orjson.loads(got.body) for got in receiver.got]


async def test_the_body_is_the_task_with_addresses_that_work(serve: Serve, receiver: Receiver) -> None:
    async with serve(allow_private_callbacks=True) as api:
        task_id = await api.submitted(callback_url=receiver.url("/hook"), params={"seed": 7})
        assert (await api.get(f"{TASK}/{task_id}")).data["callback"]["state"] == "pending"
        await api.ended(task_id)
        waiting = (await api.get(f"{TASK}/{task_id}")).data["callback"]
        assert (waiting["state"], waiting["attempts"], waiting["last_error"]) == ("pending", 0, None)
        [body] = await sending(api, receiver, 1)
        shown = (await api.get(f"{TASK}/{task_id}")).data
        callback = shown.pop("callback")
        assert (callback["state"], callback["attempts"], callback["next_at"]) == ("delivered", 1, None)
        assert callback["ended_at"] >= shown["ended_at"]
        assert (body["type"], body["timestamp"]) == ("task.succeeded", shown["ended_at"])
        told = body["data"]
        assert told["query_url"] == api.url + shown["query_url"]
        async with api.session.get(told["images"][0]["url"]) as answer:
            assert (answer.status, answer.content_type) == (200, "image/png")
        for task in (told, shown):
            for name in ("query_url", "events_url"):
                del task[name]
            for image in task["images"]:
                del image["url"]
        assert told == shown
        assert api.app.counters["callbacks_delivered"] == 1


async def test_addresses_lead_to_the_public_url(serve: Serve, receiver: Receiver) -> None:
    async with serve(allow_private_callbacks=True, public_url="https://pictures.example.org/") as api:
        task_id = await api.submitted(callback_url=receiver.url("/hook"))
        await api.ended(task_id)
        [body] = await sending(api, receiver, 1)
    assert body["data"]["query_url"] == f"https://pictures.example.org{TASK}/{task_id}"
    assert body["data"]["images"][0]["url"].startswith("https://pictures.example.org/files/images/")


async def test_a_failure_and_its_replay_are_told_each_as_it_ended(serve: Serve, receiver: Receiver) -> None:
    async with serve(allow_private_callbacks=True) as api:
        task_id = await api.submitted(callback_url=receiver.url("/hook"))
        await api.ended(task_id, State.FAILED, error={"code": "engine_crashed", "message": "the engine died"})
        assert await api.runtime.tasks.replay(task_id)
        await api.ended(task_id)
        bodies = {body["type"]: body["data"] for body in await sending(api, receiver, 2)}
        assert len(set(receiver.ids())) == 2
    failed, succeeded = bodies["task.failed"], bodies["task.succeeded"]
    assert (failed["status"], failed["progress"], failed["images"]) == ("failed", 0.0, [])
    assert failed["version"] < succeeded["version"]
    assert (succeeded["status"], len(succeeded["images"])) == ("succeeded", 1)


async def test_a_failed_delivery_shows_in_the_task(serve: Serve, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [410]
    async with serve(allow_private_callbacks=True) as api:
        task_id = await api.submitted(callback_url=receiver.url("/hook"))
        await api.call("DELETE", f"{TASK}/{task_id}")
        await sending(api, receiver, 1)
        callback = (await api.get(f"{TASK}/{task_id}")).data["callback"]
        assert (callback["state"], callback["last_error"]) == ("failed", "the receiver answered 410")
        assert api.app.counters["callbacks_failed"] == 1
        plain = await api.submitted()
        assert (await api.get(f"{TASK}/{plain}")).data["callback"] is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "must start with http:// or https://"),
        ("ftp://example.org/x", "must start with http:// or https://"),
        ("http://", "must start with http:// or https://"),
        ("http://example.org:99999/", "not a URL"),
        ("http://ana:word@example.org/", "user name or password"),
        ("http://127.0.0.1:9/", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
        ("http://localhost/", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
        ("http://[::1]/", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
        ("http://169.254.169.254/latest/meta-data", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
        ("http://2130706433/", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
        ("http://0x7f.1/", "STREAMAPP_ALLOW_PRIVATE_CALLBACKS"),
    ],
)
def test_an_address_that_cannot_work_is_refused_at_submit(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        _check(Submission(text="x", callback_url=url), Settings(data_dir=tmp_path))
    assert caught.value.details == {"field": "callback_url"}


@pytest.mark.parametrize("url", ["https://example.org/hook?a=b", "http://8.8.8.8:8080/", "https://1.example.org"])
def test_public_addresses_and_names_are_taken(url: str, tmp_path: Path) -> None:
    _check(Submission(text="x", callback_url=url), Settings(data_dir=tmp_path))


def test_without_a_secret_a_cluster_refuses_and_says_what_is_missing(tmp_path: Path) -> None:
    cluster = Settings(data_dir=tmp_path, broker="kafka://127.0.0.1:9092")
    asked = Submission(text="x", callback_url="https://example.org/")
    with pytest.raises(InvalidRequest, match="STREAMAPP_WEBHOOK_SECRET"):
        _check(asked, cluster)
    _check(Submission(text="x"), cluster)
    _check(asked, Settings(data_dir=tmp_path, broker="kafka://127.0.0.1:9092", webhook_secret=(SecretStr(SECRET),)))
    assert signing_secrets(cluster) == ()


def test_embedded_makes_a_secret_once_and_keeps_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    [key] = signing_secrets(settings)
    kept = tmp_path / "webhook-secret"
    assert kept.read_text() == "whsec_" + base64.b64encode(key).decode()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert (len(key), signing_secrets(settings)) == (32, (key,))
    assert signing_secrets(Settings(data_dir=tmp_path, webhook_secret=(SecretStr(SECRET),))) == (b"s" * 32,)
    kept.write_text("nonsense")
    with pytest.raises(ConfigError, match="webhook-secret must be whsec_"):
        signing_secrets(settings)


@pytest.mark.parametrize("value", ["swordfish", "whsec_x", "whsec_c2hvcnQ=", f"{SECRET},swordfish", SECRET[6:]])
def test_a_malformed_secret_stops_the_start_and_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMAPP_WEBHOOK_SECRET", value)
    with pytest.raises(ConfigError, match="STREAMAPP_WEBHOOK_SECRET: must be whsec_") as caught:
        load_settings()
    assert value not in caught.value.message


def test_several_secrets_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "whsec_" + base64.b64encode(b"o" * 24).decode()
    monkeypatch.setenv("STREAMAPP_WEBHOOK_SECRET", f"{SECRET}, {other}")
    assert signing_secrets(load_settings()) == (b"s" * 32, b"o" * 24)
