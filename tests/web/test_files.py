"""Pictures by signed address: whole, in parts, and only with the signature."""

from __future__ import annotations

import pytest

from tests.web.conftest import PNG, Api


@pytest.fixture
async def address(api: Api) -> str:
    task_id = await api.submitted()
    await api.ended(task_id)
    url: str = (await api.get(f"/api/v1/image/task/{task_id}")).data["images"][0]["url"]
    return url


async def test_a_picture_arrives_whole_with_what_a_browser_needs(api: Api, address: str) -> None:
    answer = await api.get(address)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, PNG, "image/png")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert "private" in answer.headers["Cache-Control"]
    head = await api.call("HEAD", address)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(PNG)))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-9", 0, 10), ("100-", 100, len(PNG)), ("-7", len(PNG) - 7, len(PNG)), ("5-999999", 5, len(PNG))],
)
async def test_a_range_is_that_part(api: Api, address: str, asked: str, first: int, last: int) -> None:
    answer = await api.get(address, headers={"Range": f"bytes={asked}"})
    assert (answer.status, answer.body) == (206, PNG[first:last])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(PNG)}"


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=x-y"])
async def test_a_range_that_is_not_understood_gives_everything(api: Api, address: str, asked: str) -> None:
    answer = await api.get(address, headers={"Range": asked})
    assert (answer.status, answer.body) == (200, PNG)


async def test_a_range_behind_the_end_says_how_long_the_file_is(api: Api, address: str) -> None:
    answer = await api.get(address, headers={"Range": f"bytes={len(PNG)}-"})
    answer.refused(416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{len(PNG)}"


async def test_what_a_client_has_is_not_sent_again(api: Api, address: str) -> None:
    first = await api.get(address)
    again = await api.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    since = await api.get(address, headers={"If-Modified-Since": first.headers["Last-Modified"]})
    assert since.status == 304
    changed = await api.get(address, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (changed.status, changed.body) == (200, PNG)


async def test_an_address_cannot_be_made_up(api: Api, address: str) -> None:
    path, _, query = address.partition("?")
    fields = dict(part.split("=") for part in query.split("&"))
    last = fields["sig"][-1]
    forged = f"{path}?exp={fields['exp']}&sig={fields['sig'][:-1]}{'0' if last != '0' else '1'}"
    longer = f"{path}?exp={int(fields['exp']) + 1}&sig={fields['sig']}"
    renamed = f"{address}&name=other.png"
    for url in (path, forged, longer, renamed, f"{path}?exp=x&sig=y", f"{path}?exp=&sig="):
        (await api.get(url)).refused(403, "forbidden")


@pytest.mark.parametrize(
    "path", ["../streamapp.db", "..%2fstreamapp.db", "%2e%2e/streamapp.db", "images/../../x", "/etc/passwd", "a%00b"]
)
async def test_no_path_leads_out_of_the_storage(api: Api, path: str) -> None:
    answer = await api.get(f"/files/{path}")
    assert answer.status in {403, 404}
    assert b"SQLite" not in answer.body


async def test_a_download_has_its_name(api: Api) -> None:
    task_id = await api.submitted()
    await api.ended(task_id)
    [image] = (await api.runtime.tasks.images([task_id]))[task_id]
    url = await api.runtime.storage.url(image.key, filename="rote Äpfel.png")
    answer = await api.get(url)
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''rote%20%C3%84pfel.png"


async def test_a_file_that_is_gone_is_not_found(api: Api, address: str) -> None:
    await api.runtime.storage.delete(address.partition("?")[0].removeprefix("/files/"))
    (await api.get(address)).refused(404, "not_found")
