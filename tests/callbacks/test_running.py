"""The service as it is started, killed and started again while a receiver is away."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import orjson

from tests.callbacks.conftest import Receiver
from tests.integration.fleet import Fleet, kill, until


async def test_a_webhook_survives_a_kill_and_verifies_with_the_secret_of_the_data_folder(
    tmp_path: Path, receiver: Receiver
) -> None:
    """The receiver fails until the service has been killed; the next process tells it, with the same id."""
    env = {
        "STREAMAPP_DATA_DIR": str(tmp_path / "data"),
        "STREAMAPP_ENGINE": "fake",
        "STREAMAPP_ALLOW_PRIVATE_CALLBACKS": "true",
    }
    receiver.answers["/hook"] = [500]
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "first")
        await fleet.ready(service, within=60)
        body = {"text": "a red apple", "callback_url": receiver.url("/hook")}
        answer = await fleet.json("POST", f"{service.url}/api/v1/image/generate", body, status=200)
        task_id = answer["data"]["task_id"]

        async def failed() -> bool:
            callback = (await fleet.task(service, task_id))["callback"]
            return bool(callback["last_error"] == "the receiver answered 500")

        await until(failed, within=30, what="the first attempt", log=service.log)
        kill(service)
        await service.ended(within=10)
        before = len(receiver.got)
        receiver.answers["/hook"] = [204]
        service = fleet.start("up", "second")
        await fleet.ready(service, within=60)

        async def delivered() -> bool:
            callback = (await fleet.task(service, task_id))["callback"]
            return bool(callback["state"] == "delivered")

        await until(delivered, within=90, what="the webhook is delivered", log=service.log)
        key = base64.b64decode((tmp_path / "data" / "webhook-secret").read_text().removeprefix("whsec_"))
        got = receiver.got[-1]
        told = orjson.loads(got.body)
        assert (len(receiver.got), len(set(receiver.ids()))) == (before + 1, 1)
        assert (told["type"], told["data"]["task_id"]) == ("task.succeeded", task_id)
        signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert got.headers["webhook-signature"] == f"v1,{expected}"
        assert (await fleet.picture(service, told["data"])).startswith(b"\x89PNG")
        assert key.hex() not in service.log.read_text()
