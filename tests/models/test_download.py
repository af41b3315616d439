"""Downloads: resumed, verified, explained; whole or not there at all."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from streamapp.errors import AppError
from streamapp.guarded import FetchFailed, GuardedClient
from streamapp.models import download
from streamapp.models.download import Downloader, Fetched, Remote
from tests.models.publisher import Publisher, checkpoint, serving

BODY = checkpoint()


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    async with GuardedClient(allow_private=True, timeout=1.0) as client:
        yield client


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def downloader(client: GuardedClient, pauses: list[float]) -> Downloader:
    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    return Downloader(client, attempts=3, sleep=sleep)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "dreamy.safetensors"


def left(target: Path) -> set[str]:
    """What lies beside the lock."""
    return {path.name for path in target.parent.iterdir()} - {f"{target.name}.lock"}


async def test_a_file_arrives_whole_with_its_digest_and_progress(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY)
    heard: list[tuple[int, int | None]] = []
    async with serving(publisher) as url:
        got = await downloader.fetch(
            Remote(url, "Dreamy", publisher.digest), target, lambda here, all_: heard.append((here, all_))
        )
    assert (got.path, got.digest, got.size, got.resumed) == (target, publisher.digest, len(BODY), 0)
    assert target.read_bytes() == BODY
    assert heard[-1] == (len(BODY), len(BODY))
    assert left(target) == {target.name}


@pytest.mark.parametrize("faults", [["drop"], ["drop", "drop", "500", "429", "drop"], ["500", "429"], ["short"]])
async def test_faults_that_pass_cost_no_byte_twice(faults: list[str], downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=list(faults))
    async with serving(publisher) as url:
        got = await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert got.digest == publisher.digest
    assert target.read_bytes() == BODY
    assert publisher.sent == len(BODY)
    assert len(publisher.seen) == len(faults) + 1


async def test_a_server_that_asks_for_a_pause_gets_it(
    downloader: Downloader, target: Path, pauses: list[float]
) -> None:
    publisher = Publisher(BODY, faults=["500", "429"])
    async with serving(publisher) as url:
        await downloader.fetch(Remote(url, "Dreamy"), target)
    assert 0.5 <= pauses[0] <= 1.0
    assert pauses[1] == 7.0


async def test_a_server_that_never_gets_well_is_given_up(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["500"] * 100)
    async with serving(publisher) as url:
        with pytest.raises(FetchFailed, match="3 tries in a row brought nothing new"):
            await downloader.fetch(Remote(url, "Dreamy"), target)
    assert len(publisher.seen) == 3


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("html", "needs_token", "web page instead of the file; set STREAMAPP_CIVITAI_TOKEN"),
        ("401", "needs_token", "Early Access"),
        ("403", "not_allowed", "Early Access, wait until Friday"),
        ("404", "not_found", "not at 127.0.0.1 any more"),
    ],
)
async def test_a_no_is_explained_and_not_asked_again(
    fault: str, code: str, says: str, downloader: Downloader, target: Path
) -> None:
    publisher = Publisher(BODY, faults=[fault])
    async with serving(publisher) as url:
        with pytest.raises(AppError, match=says) as caught:
            await downloader.fetch(Remote(url, "Dreamy"), target)
    assert caught.value.code == code
    assert len(publisher.seen) == 1
    assert not target.exists()


async def test_wrong_bytes_never_get_the_name(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["other"])
    async with serving(publisher) as url:
        with pytest.raises(AppError, match="its publisher says") as caught:
            await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert caught.value.code == "wrong_digest"
    assert left(target) == set()


async def test_a_file_of_another_length_than_published_is_refused_at_once(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY)
    async with serving(publisher) as url:
        with pytest.raises(AppError, match="bytes are offered"):
            await downloader.fetch(Remote(url, "Dreamy", size=len(BODY) + 1), target)
    assert not target.exists()


async def test_bytes_that_are_no_weights_are_refused(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(b"PK\x03\x04" + bytes(100_000))
    async with serving(publisher) as url:
        with pytest.raises(AppError, match="not a whole safetensors file"):
            await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert left(target) == set()


async def test_a_file_that_changed_meanwhile_starts_anew(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["drop", "500", "500", "500"])
    async with serving(publisher) as url:
        with pytest.raises(FetchFailed):
            await downloader.fetch(Remote(url, "Dreamy"), target)
        publisher.body, publisher.etag = checkpoint(2_000_000), '"v2"'
        got = await downloader.fetch(Remote(url, "Dreamy"), target)
    assert got.digest == publisher.digest
    assert publisher.seen[-1].headers["If-Range"] == '"v1"'


async def test_a_server_without_ranges_still_gives_the_file(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["drop", "no-range"])
    async with serving(publisher) as url:
        got = await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert got.digest == publisher.digest


async def test_a_damaged_remainder_is_thrown_away_and_fetched_again(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["drop", "500", "500", "500"])
    async with serving(publisher) as url:
        with pytest.raises(FetchFailed):
            await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(bytes(part.stat().st_size))
        got = await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert got.digest == publisher.digest
    assert target.read_bytes() == BODY


async def test_a_slow_drip_is_cut_and_continued(
    downloader: Downloader, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    publisher = Publisher(BODY, faults=["drip"])
    async with serving(publisher) as url:
        got = await downloader.fetch(Remote(url, "Dreamy", publisher.digest), target)
    assert got.digest == publisher.digest
    assert publisher.sent == len(BODY)


async def test_a_token_stays_with_the_host_it_is_for(downloader: Downloader, target: Path) -> None:
    storage, site = Publisher(BODY), Publisher(BODY, faults=["elsewhere"])
    async with serving(storage) as there, serving(site) as url:
        site.elsewhere = there
        await downloader.fetch(Remote(url, "Dreamy", headers={"Authorization": "Bearer secret"}), target)
    assert site.seen[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in storage.seen[0].headers
    assert all(b"secret" not in path.read_bytes() for path in target.parent.iterdir())


async def test_a_full_disk_is_said_before_the_first_byte(
    downloader: Downloader, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SPARE", 1 << 60)
    publisher = Publisher(BODY)
    async with serving(publisher) as url:
        with pytest.raises(AppError, match="GB are free: remove models") as caught:
            await downloader.fetch(Remote(url, "Dreamy"), target)
    assert caught.value.code == "no_space"


async def test_ten_that_want_the_same_file_fetch_it_once(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(BODY, faults=["drop"])
    async with serving(publisher) as url:
        got = await asyncio.gather(
            *(downloader.fetch(Remote(url, "Dreamy", publisher.digest), target) for _ in range(10))
        )
    assert {one.digest for one in got} == {publisher.digest}
    assert publisher.sent == len(BODY)


class Counting(Publisher):
    """Knows how many it serves at a time."""

    active, most = 0, 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.active += 1
        self.most = max(self.most, self.active)
        await asyncio.sleep(0.02)
        try:
            return await super().answer(request)
        finally:
            self.active -= 1


async def test_a_host_is_asked_for_a_few_files_at_a_time(client: GuardedClient, target: Path) -> None:
    publisher, downloader = Counting(BODY), Downloader(client, per_host=2)
    targets = [target.with_name(f"{number}.safetensors") for number in range(6)]
    async with serving(publisher) as url:
        await asyncio.gather(*(downloader.fetch(Remote(url, "Dreamy", publisher.digest), one) for one in targets))
    assert publisher.most == 2
    assert all(one.exists() for one in targets)


FETCH = """
import asyncio, sys
from pathlib import Path
from streamapp.guarded import GuardedClient
from streamapp.models.download import Downloader, Remote

async def main() -> None:
    async with GuardedClient(allow_private=True, timeout=20.0) as client:
        await Downloader(client).fetch(
            Remote(sys.argv[1], "Dreamy"), Path(sys.argv[2]), lambda here, _: print(here, flush=True)
        )

asyncio.run(main())
"""


async def test_a_killed_download_goes_on_where_it_was(downloader: Downloader, target: Path) -> None:
    publisher = Publisher(checkpoint(12_000_000), faults=["drop"])
    async with serving(publisher) as url:
        # It is killed in the pause after the connection broke, with the first part on the disk.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FETCH, url, str(target), stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        here = int(await asyncio.wait_for(child.stdout.readline(), 30))
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        got: Fetched = await downloader.fetch(Remote(url, "Dreamy"), target)
    assert here > 0
    assert got.resumed == here
    assert got.digest == hashlib.sha256(publisher.body).hexdigest()
    assert publisher.sent == len(publisher.body)
