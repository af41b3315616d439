"""The two brokers, each with the topics of the test application."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.broker.steering import Broker


@pytest.fixture(params=["embedded", "kafka"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Broker:
    """A fresh broker, or fresh topics on the shared one."""
    url = "embedded://" if request.param == "embedded" else kafka(request)
    one = Broker(url, tmp_path, f"app-{uuid.uuid4().hex[:8]}")
    await one.prepare()
    return one


@pytest.fixture
def kafka_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """The Kafka broker alone, for what only several processes can show."""

    async def make() -> Broker:
        one = Broker(kafka(request), tmp_path, f"app-{uuid.uuid4().hex[:8]}")
        await one.prepare()
        return one

    return make


def kafka(request: pytest.FixtureRequest) -> str:
    """The address of the shared Kafka, or a skip where there is none."""
    try:
        url: str = request.getfixturevalue("kafka_url")
    except pytest.FixtureLookupError:
        pytest.skip("no fixture kafka_url: the Kafka server for tests is not set up")
    return url
