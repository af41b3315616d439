"""Requests that no honest client sends: each is answered in our form, at once, and by nothing worse than a refusal."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest

from tests.web.conftest import Answer, Api, Serve

GENERATE = "/api/v1/image/generate"
APPLE = b'{"text":"a red apple"}'


async def raw(api: Api, line: str, body: bytes = b"", *headers: bytes) -> Answer:
    """Send bytes that a client library would refuse to send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.app.port)
    head = [line.encode() + b" HTTP/1.1", b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body), *headers]
    writer.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    top, _, rest = answer.partition(b"\r\n\r\n")
    return Answer(int(top.split()[1]), {}, rest)


@pytest.mark.parametrize("key", [b"\xff\xfe", b"a\tb"])
async def test_a_key_of_odd_bytes_is_refused(api: Api, key: bytes) -> None:
    answer = await raw(api, f"POST {GENERATE}", APPLE, b"Idempotency-Key: " + key)
    assert "printable" in answer.refused(400, "invalid_request", field="idempotency_key")
    assert await api.runtime.tasks.page() == []


async def test_an_origin_of_odd_bytes_is_refused(api: Api) -> None:
    answer = await raw(api, f"POST {GENERATE}", APPLE, b"Origin: http://\xff")
    assert "http://\\udcff" in answer.refused(403, "forbidden")


@pytest.mark.parametrize("header", [b"traceparent: \xff", b"X-Request-Id: \xff", b"Authorization: Bearer \xff"])
async def test_other_headers_of_odd_bytes_change_nothing(api: Api, header: bytes) -> None:
    assert (await raw(api, f"POST {GENERATE}", APPLE, header)).data["status"] == "queued"


async def test_a_key_of_odd_bytes_is_not_known(serve: Serve) -> None:
    async with serve(api_keys=("ana:correct-horse-1",)) as api:
        answer = await raw(api, "GET /api/v1/status", b"", b"Authorization: Bearer \xff\xfe")
        answer.refused(401, "unauthorized")


async def test_a_body_that_is_not_packed_as_it_says_is_refused(api: Api) -> None:
    answer = await raw(api, f"POST {GENERATE}", APPLE, b"Content-Encoding: gzip")
    assert "as its headers say" in answer.refused(400, "invalid_request")


async def test_a_packed_body_is_limited_by_what_it_unpacks_to(serve: Serve) -> None:
    async with serve(max_request_bytes=10_000) as api:
        packed = gzip.compress(APPLE)
        assert (await raw(api, f"POST {GENERATE}", packed, b"Content-Encoding: gzip")).data["status"] == "queued"
        bomb = gzip.compress(b" " * 5_000_000)
        assert len(bomb) < 10_000
        (await raw(api, f"POST {GENERATE}", bomb, b"Content-Encoding: gzip")).refused(413, "too_large")


@pytest.mark.parametrize("levels", [40, 300, 900])
async def test_what_is_nested_without_end_is_refused(api: Api, levels: int) -> None:
    for opening, closing in ((b'{"a":', b"}"), (b"[", b"]")):
        nested = opening * levels + b"1" + closing * levels
        answer = await api.generate(b'{"text":"a","provenance":{"a":' + nested + b"}}")
        assert "more than 32 deep" in answer.refused(400, "invalid_request")


async def test_a_mistake_in_one_request_costs_no_other(api: Api) -> None:
    """Submits share a transaction: one that cannot be stored must not take the others with it."""
    odd = (api.generate(b'{"text":"a","provenance":' + b"[" * 300 + b"]" * 300 + b"}") for _ in range(10))
    good = (api.generate() for _ in range(10))
    answers = await asyncio.gather(*(call for pair in zip(odd, good, strict=True) for call in pair))
    assert [answer.status for answer in answers] == [400, 200] * 10
    assert len(await api.runtime.tasks.page()) == 10


@pytest.mark.parametrize(
    "provenance", [{"loras": 5}, {"loras": {"a": 1}}, {"loras": [1, None]}, {"model": []}, {"model": {"name": [1]}}]
)
async def test_a_provenance_of_another_form_checks_nothing(api: Api, provenance: object) -> None:
    assert (await api.generate({"text": "a", "provenance": provenance})).status == 200


@pytest.mark.parametrize(
    "host", ["xn--a.com", "a" * 64 + ".com", "a" * 300 + ".com", "a..b.com", "[::1", "ex ample.com", "x:99999"]
)
async def test_a_callback_to_no_host_is_refused(api: Api, host: str) -> None:
    answer = await api.generate({"text": "a", "callback_url": f"https://{host}/"})
    answer.refused(400, "invalid_request", field="callback_url")


async def test_a_callback_may_go_to_a_host_in_any_script(api: Api) -> None:
    assert (await api.generate({"text": "a", "callback_url": "https://例え.テスト/"})).status == 200


@pytest.mark.parametrize("key", [" order-1", "order-1 ", "order\x00", "a\u2028b"])
async def test_a_key_that_databases_would_read_differently_is_refused(api: Api, key: str) -> None:
    message = (await api.generate({"text": "a", "idempotency_key": key})).refused(400, "invalid_request")
    assert "blanks at its ends" in message


async def test_a_task_id_is_matched_exactly(api: Api) -> None:
    task_id = await api.submitted()
    for other in (f"{task_id}%20", f"{task_id}%00", task_id.upper(), f"{task_id}%0a"):
        for method, path in (("GET", other), ("DELETE", other), ("GET", f"{other}/events")):
            (await api.call(method, f"/api/v1/image/task/{path}")).refused(404, "not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/image/tasks?before=%ff%fe",
        "/api/v1/image/tasks?before=%ed%a0%80",
        "/api/v1/image/task/%ff",
        "/files/images/x.png?exp=99999999999999999999999999&sig=%C3%A9",
        "/files/images/x.png?exp=%D9%A3&sig=a&name=%0d%0ax",
        "/nothing/%ff%00",
        "/api/v1/dead_letters/%ff%00",
    ],
)
async def test_an_odd_address_is_answered(api: Api, path: str) -> None:
    answer = await raw(api, f"GET {path}")
    assert answer.status in {200, 400, 403, 404}
    assert orjson.loads(answer.body)["message"]


async def test_numbers_beyond_all_limits_are_refused(api: Api) -> None:
    for body in (
        '{"text":"a","params":{"seed":1e300}}',
        '{"text":"a","priority":1e300}',
        f'{{"text":"a","p":{10**400}}}',
    ):
        (await api.generate(body.encode())).refused(400, "invalid_request")


async def test_a_page_under_the_public_address_may_submit(serve: Serve) -> None:
    async with serve(public_url="https://pictures.example/api") as api:
        assert (await api.generate(headers={"Origin": "https://pictures.example"})).status == 200
        (await api.generate(headers={"Origin": "null"})).refused(403, "forbidden")
        (await api.generate(headers={"Origin": "https://pictures.example.evil"})).refused(403, "forbidden")
