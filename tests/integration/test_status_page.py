"""The status page as a person uses it, in a real browser on a real service."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, expect

from tests.integration.fleet import Fleet, Member

SECONDS = 1000
ALL_LOADED = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def brightness(colour: str) -> int:
    """The red of ``rgb(…)``: the pages' backgrounds are nearly grey."""
    return int(re.findall(r"\d+", colour)[0])


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """One process that does everything, with pictures that cost nothing."""
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "fake"}
    async with Fleet(env, tmp_path) as fleet:
        yield fleet


@pytest.fixture
async def service(fleet: Fleet) -> Member:
    """The ready process."""
    service = fleet.start("up", "up-page")
    await fleet.ready(service, within=60)
    return service


@pytest.fixture
def page(chromium_page: Page, service: Member) -> Iterator[Page]:
    """A page on which no script fails and that asks nobody but the service."""
    problems: list[str] = []
    origins: set[str] = set()
    chromium_page.on("pageerror", lambda error: problems.append(str(error)))
    chromium_page.on("console", lambda entry: problems.append(entry.text) if entry.type == "error" else None)
    chromium_page.on("request", lambda request: origins.add(origin(request.url)))
    yield chromium_page
    assert problems == []
    assert origins == {service.url}


async def test_a_picture_is_drawn_from_the_page(page: Page, service: Member) -> None:
    """Submit, see it end, see the picture, open the task with its recipe; the figures follow without a reload."""
    await page.goto(service.url)
    await expect(page.get_by_role("heading", name="Ready to draw")).to_be_visible(timeout=15 * SECONDS)
    await expect(page.get_by_role("list", name="Workers").get_by_text("up-page")).to_be_visible()
    await page.get_by_label("Prompt").fill("a cute panda")
    await page.get_by_label("Seed").fill("7")
    await page.get_by_label("Prompt").press("Control+Enter")
    await expect(page.locator("#try-state")).to_have_text("Done", timeout=30 * SECONDS)
    tasks = page.get_by_role("list", name="Recent tasks")
    await expect(tasks.get_by_role("img", name="a cute panda")).to_be_visible(timeout=15 * SECONDS)
    await page.wait_for_function(ALL_LOADED)
    await expect(page.locator("#total-done")).to_have_text("1", timeout=30 * SECONDS)
    await expect(page.get_by_role("figure").get_by_role("img")).to_have_accessible_name(
        re.compile(r"1 image in the last hour"), timeout=30 * SECONDS
    )
    await tasks.get_by_role("button", name="a cute panda").click()
    sheet = page.get_by_role("dialog", name="Task")
    await expect(sheet.locator("pre")).to_contain_text('"seed": 7')
    await expect(sheet.get_by_role("img", name="a cute panda, number 1")).to_be_visible()


async def test_progress_is_seen_and_a_task_cancelled(page: Page, service: Member, fleet: Fleet) -> None:
    """A running task shows its percent, and stops when its button is pressed."""
    task_id = await fleet.submit(service, "fake:slow fox", steps=100)
    await page.goto(f"{service.url}/#task={task_id}")
    sheet = page.get_by_role("dialog", name="Task")
    await expect(sheet.get_by_text("running", exact=True)).to_be_visible(timeout=15 * SECONDS)
    await expect(sheet.get_by_text(re.compile(r"^[1-9]\d? %$"))).to_be_visible(timeout=15 * SECONDS)
    await sheet.get_by_role("button", name="Cancel this task").click()
    await expect(sheet.locator(".badge")).to_have_text("cancelled", timeout=15 * SECONDS)
    assert (await fleet.task(service, task_id))["status"] == "cancelled"


async def test_it_fits_a_phone_and_a_desk(page: Page, service: Member, fleet: Fleet) -> None:
    """Long words and many tasks never make a page scroll sideways; what is read is dark on light, or the reverse."""
    ids = [await fleet.submit(service, f"{'unbreakable' * 12} {number}", seed=number) for number in range(5)]
    await fleet.finished(service, ids, within=60)
    tasks = page.get_by_role("list", name="Recent tasks")
    for width in (390, 1280):
        await page.set_viewport_size({"width": width, "height": 844})
        await page.goto(service.url)
        await expect(tasks.get_by_role("listitem")).to_have_count(5)
        assert await page.evaluate(OVERFLOW) == 0, width
        await tasks.get_by_role("button").first.click()
        await expect(page.get_by_role("dialog", name="Task").locator("pre")).to_be_visible()
        assert await page.evaluate(OVERFLOW) == 0, width
        await page.goto(f"{service.url}/docs")
        await expect(page.get_by_role("heading", name="Submit a task")).to_be_visible()
        assert await page.evaluate(OVERFLOW) == 0, width
    await page.emulate_media(color_scheme="light")
    light = await page.evaluate(BACKGROUND)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(BACKGROUND)
    assert (brightness(light) > 200, brightness(dark) < 60) == (True, True)
