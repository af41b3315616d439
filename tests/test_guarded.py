"""Addresses that users name reach only what anybody could reach."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streamapp import guarded
from streamapp.guarded import FetchFailed, GuardedClient, Refused, is_public


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """A loopback server that redirects, overflows and echoes."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.method} {request.headers.get('authorization', '-')}")

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=int(request.query.get("status", 302)), headers={"location": request.query["to"]})

    async def loop(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": "/loop"})

    async def big(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 5000)

    app = web.Application()
    app.router.add_route("*", "/echo", echo)
    app.router.add_route("*", "/redirect", redirect)
    app.router.add_get("/big", big)
    app.router.add_get("/loop", loop)
    running = TestServer(app, host="127.0.0.1")
    await running.start_server()
    yield running
    await running.close()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Private ranges stay private in every notation that wraps them."""
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/x", "file:///etc/passwd", "http://127.0.0.1/", "http://[::1]/", "http://u:p@example.org/", "x"],
)
async def test_refused_before_anything_is_sent(url: str) -> None:
    """Other schemes, credentials and literal private addresses are refused with a sentence."""
    async with GuardedClient() as client:
        with pytest.raises(Refused):
            await client.request("GET", url)


async def test_a_name_that_resolves_to_a_private_address_is_refused(server: TestServer) -> None:
    """``localhost`` is a name like any other; what it resolves to decides."""
    async with GuardedClient() as client:
        with pytest.raises(Refused, match="not a public address"):
            await client.request("GET", f"http://localhost:{server.port}/echo")
    async with GuardedClient(allow_private=True) as client:
        assert (await client.request("GET", f"http://localhost:{server.port}/echo")).body == b"GET -"


async def test_a_redirect_to_a_private_address_is_refused(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address may be fine and still point inside."""

    async def resolve(self: Any, host: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(guarded.PublicResolver, "resolve", resolve)  # the outside world, as far as this test goes
    async with GuardedClient() as client:
        first = f"http://outside.example:{server.port}/redirect"
        assert (await client.request("GET", f"{first}?to=/echo")).status == 200
        with pytest.raises(Refused):
            await client.request("GET", f"{first}?to=http://127.0.0.1:{server.port}/echo")
        with pytest.raises(FetchFailed, match="redirects more than"):
            await client.request("GET", f"http://outside.example:{server.port}/loop")


async def test_methods_and_credentials_over_redirects(server: TestServer) -> None:
    """307 repeats the POST, 303 does not; a credential stays with the host it was meant for."""
    base = f"http://127.0.0.1:{server.port}"
    secret = {"Authorization": "Bearer x"}
    async with GuardedClient(allow_private=True) as client:
        kept = await client.request("POST", f"{base}/redirect?status=307&to=/echo", body=b"{}", headers=secret)
        assert kept.body == b"POST Bearer x"
        other = f"{base}/redirect?status=303&to=http://localhost:{server.port}/echo"
        assert (await client.request("POST", other, body=b"{}", headers=secret)).body == b"GET -"


async def test_too_large_an_answer_is_an_error_not_a_cut(server: TestServer) -> None:
    """Half a body must not look like a whole one."""
    async with GuardedClient(allow_private=True, max_bytes=4096) as client:
        with pytest.raises(FetchFailed, match="larger than 4096"):
            await client.request("GET", f"http://127.0.0.1:{server.port}/big")


async def test_nobody_listening_is_worth_another_try() -> None:
    """A refused connection is retryable; a refused address is not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with GuardedClient(allow_private=True) as client:
        with pytest.raises(FetchFailed) as caught:
            await client.request("GET", f"http://127.0.0.1:{port}/")
    assert caught.value.retryable
    assert not Refused.retryable


async def test_a_stream_follows_redirects_and_is_read_piece_by_piece(server: TestServer) -> None:
    async with GuardedClient(allow_private=True, max_bytes=100) as client:
        async with client.stream(f"{server.make_url('/redirect')}?to=/big") as answer:
            assert answer.status == 200
            assert sum([len(piece) async for piece in answer.content.iter_chunked(1000)]) == 5000
        with pytest.raises(FetchFailed, match="redirects more than"):
            async with client.stream(str(server.make_url("/loop"))):
                pass


async def test_a_stream_that_breaks_off_is_a_failure_that_may_be_tried_again(server: TestServer) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 100)
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/half", half)
    async with TestServer(app, host="127.0.0.1") as other, GuardedClient(allow_private=True) as client:
        with pytest.raises(FetchFailed) as caught:
            async with client.stream(str(other.make_url("/half"))) as answer:
                await answer.read()
    assert caught.value.retryable
