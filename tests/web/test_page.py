"""The pages as they are sent: complete, ours alone, and kept by caches for exactly as long as they are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from streamapp.settings import Settings
from tests.web.conftest import Api
from web.page import STATIC, Asset, content_security_policy, picture_origins, version_of

PAGES = ("/", "/docs")


async def fetched(api: Api, path: str, **headers: str) -> Any:
    """Status, headers and text."""
    answer = await api.get(path, headers=headers)
    return answer.status, answer.headers, answer.body.decode()


def addresses(text: str) -> list[str]:
    """What a page loads or links to."""
    return re.findall(r'(?:href|src)="([^"#]+)"', text)


@pytest.mark.parametrize("path", PAGES)
async def test_all_that_a_page_names_is_there(api: Api, path: str) -> None:
    status, headers, text = await fetched(api, path)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "$" not in text
    loaded = [address for address in addresses(text) if address.startswith("/static/")]
    assert len(loaded) >= 4
    for address in loaded:
        assert (await fetched(api, address))[0] == 200, address


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_needs_nothing_from_elsewhere_and_nothing_inline(api: Api, path: str) -> None:
    _, headers, text = await fetched(api, path)
    assert all(address.startswith("/") for address in addresses(text))
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; ")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_modules_import_each_other_by_relative_address(api: Api) -> None:
    """An absolute one would leave the version, and with it the promise that a cached file fits the others."""
    scripts = [path for path in STATIC.iterdir() if path.suffix == ".js"]
    imported = [name for path in scripts for name in re.findall(r'from "([^"]+)"', path.read_text())]
    assert imported
    for name in imported:
        assert name.startswith("./")
        assert (STATIC / name).is_file(), name


async def test_files_are_kept_for_good_and_pages_asked_for_again(api: Api) -> None:
    _, headers, text = await fetched(api, "/")
    assert headers["Cache-Control"] == "no-cache"
    [script] = [address for address in addresses(text) if address.endswith("/app.js")]
    _, headers, body = await fetched(api, script)
    assert "immutable" in headers["Cache-Control"]
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert body == (STATIC / "app.js").read_text()


async def test_a_page_from_before_an_upgrade_still_works_but_keeps_nothing(api: Api) -> None:
    status, headers, _ = await fetched(api, "/static/0123456789ab/app.js")
    assert (status, headers["Cache-Control"]) == (200, "no-cache")


@pytest.mark.parametrize("path", PAGES)
async def test_a_browser_that_has_it_gets_no_second_copy(api: Api, path: str) -> None:
    _, headers, _ = await fetched(api, path)
    status, again, body = await fetched(api, path, **{"If-None-Match": headers["ETag"]})
    assert (status, body, again["ETag"]) == (304, "", headers["ETag"])
    assert (await fetched(api, path, **{"If-None-Match": '"another"'}))[0] == 200


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fpage.py", "%2e%2e%2fpage.py"])
async def test_nothing_else_is_served(api: Api, name: str) -> None:
    (await api.get(f"/static/0123456789ab/{name}")).refused(404, "not_found")


async def test_pages_need_no_key(serve: Any) -> None:
    async with serve(api_keys=("ann:secret-of-ann",)) as api:
        for path in PAGES:
            assert (await fetched(api, path))[0] == 200
        assert (await api.get("/api/v1/status")).status == 401


def test_every_change_of_a_file_is_a_new_version() -> None:
    one, other = Asset.of(b"1", "text/css"), Asset.of(b"2", "text/css")
    versions = {
        version_of({"a.css": one}),
        version_of({"a.css": other}),
        version_of({"b.css": one}),
        version_of({"a.css": one, "b.css": one}),
    }
    assert len(versions) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"public_url": "https://draw.example:8443/app"}, ["https://draw.example:8443"]),
        ({"storage": "s3://bucket/p", "s3_endpoint": "http://127.0.0.1:9000/x"}, ["http://127.0.0.1:9000"]),
        ({"storage": "s3://bucket/p"}, ["https:"]),
    ],
)
def test_pictures_may_come_from_where_the_storage_is(
    given: dict[str, Any], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(data_dir=tmp_path, **given)
    assert picture_origins(settings) == expected
    allowed = " ".join(["'self'", *expected])
    assert f"img-src {allowed};" in content_security_policy(settings)
