"""The status page as a person sees it, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.fleet import Fleet


async def test_the_status_page_shows_workers_and_finished_pictures(tmp_path: Path, chromium_page: Any) -> None:
    """After a few tasks the page shows the worker, the pictures and no script error, in light and dark."""
    env = {"STREAMAPP_DATA_DIR": str(tmp_path / "data"), "STREAMAPP_ENGINE": "fake"}
    async with Fleet(env, tmp_path) as fleet:
        service = fleet.start("up", "up-page")
        await fleet.ready(service, within=60)
        ids = [await fleet.submit(service, f"picture {number}", seed=number) for number in range(5)]
        await fleet.finished(service, ids, within=60)

        problems: list[str] = []
        chromium_page.on("pageerror", lambda error: problems.append(str(error)))
        chromium_page.on("console", lambda entry: problems.append(entry.text) if entry.type == "error" else None)
        for scheme in ("light", "dark"):
            await chromium_page.emulate_media(color_scheme=scheme)
            await chromium_page.goto(f"{service.url}/", wait_until="domcontentloaded")
            await chromium_page.get_by_text("up-page").first.wait_for(timeout=15_000)
            picture = chromium_page.locator("img").first
            await picture.wait_for(timeout=15_000)
            await chromium_page.wait_for_function(
                "[...document.images].length > 0 && [...document.images].every(i => i.complete && i.naturalWidth > 0)",
                timeout=15_000,
            )
            shot = tmp_path / f"status-{scheme}.png"
            await chromium_page.screenshot(path=shot, full_page=True)
            assert shot.stat().st_size > 10_000
        assert problems == []
