"""Headless Chromium for the pages that people look at, driven by Playwright."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Page, async_playwright

from tests.servers.install import find, program

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
OTHERWISE = "Install Chromium or Chrome (Debian: chromium; macOS: brew install --cask google-chrome)."

#: Without the background flags it looks up its maker's hosts at every start; tests reach nothing but loopback.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


def install() -> Path:
    """The browser's program."""
    if find(*NAMES) is None and MAC.exists():
        return MAC
    return program(*NAMES, packages=["chromium", "fonts-dejavu-core"], otherwise=OTHERWISE)


class Chromium:
    """A browser of the machine's own; every page comes from a fresh profile."""

    name = "chromium"

    def __init__(self) -> None:
        self.program = install()

    @asynccontextmanager
    async def page(self, *, width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
        """An empty page of ``width`` x ``height`` CSS pixels in a browser that ends with the block."""
        # Chromium's sandbox refuses to run as root, which is what containers and CI machines are.
        flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
        with tempfile.TemporaryDirectory(prefix="streamapp-chromium-", ignore_cleanup_errors=True) as profile:
            async with async_playwright() as playwright:
                context = await playwright.chromium.launch_persistent_context(
                    profile,
                    executable_path=self.program,
                    headless=True,
                    args=flags,
                    viewport={"width": width, "height": height},
                )
                try:
                    page = context.pages[0] if context.pages else await context.new_page()
                    yield page
                finally:
                    await context.close()
