"""The status page in a real browser over rows that a test has put there: keys, refusals, failures, empty lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page, expect

from streamapp.db import State
from tests.web.conftest import Api, Serve

KEY = "secret-of-ann"


@pytest.fixture
def faults(chromium_page: Page) -> Iterator[list[str]]:
    """Scripts that failed, and what the policy has stopped; a test ends with none."""
    found: list[str] = []
    chromium_page.on("pageerror", lambda error: found.append(str(error)))
    chromium_page.on(
        "console", lambda entry: found.append(entry.text) if "Content Security Policy" in entry.text else None
    )
    yield found
    assert found == []


async def failed(api: Api) -> str:
    """A task that failed for good."""
    task_id = await api.submitted(text="a harbour at dusk")
    error = {"code": "out_of_memory", "message": "the memory was full; ask for fewer pictures", "retryable": False}
    await api.ended(task_id, State.FAILED, error=error)
    return task_id


async def test_a_key_is_asked_for_and_a_wrong_one_refused(serve: Serve, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    async with serve(api_keys=(f"ann:{KEY}",)) as api:
        await page.goto(api.url)
        field = page.get_by_label("API key", exact=True)
        await expect(field).to_be_focused()
        await expect(page.locator("#content")).to_be_hidden()
        await field.fill("not-the-key")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert").filter(has_text="This key is not known here.")).to_be_visible()
        await field.fill(KEY)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Nothing has been asked for yet.")).to_be_visible()
        await expect(field).to_be_hidden()
        assert KEY not in page.url


async def test_without_tasks_and_workers_it_says_what_to_do(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    await page.goto(api.url)
    await expect(page.get_by_text("No worker has reported yet.")).to_be_visible()
    await expect(page.get_by_text('streamapp submit "a cute panda"')).to_be_visible()
    await expect(page.get_by_text("Nothing was drawn in the last hour.")).to_be_visible()


async def test_a_failure_is_seen_in_the_list_and_in_full(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    task_id = await failed(api)
    await page.goto(api.url)
    tasks = page.get_by_role("list", name="Recent tasks")
    await expect(tasks.get_by_text("ask for fewer pictures")).to_be_visible()
    opener = tasks.get_by_role("button", name="a harbour at dusk")
    await opener.focus()
    await page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog", name="Task")
    await expect(sheet.get_by_role("alert")).to_have_text("the memory was full; ask for fewer pictures")
    await expect(sheet.get_by_text("out_of_memory")).to_be_visible()
    assert page.url.endswith(f"#task={task_id}")
    await page.keyboard.press("Escape")
    await expect(sheet).to_be_hidden()
    await expect(opener).to_be_focused()


async def test_the_address_of_a_task_opens_it_with_its_recipe(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    task_id = await api.submitted(text="a red apple", params={"seed": 11})
    await api.ended(task_id)
    await page.goto(f"{api.url}/#task={task_id}")
    sheet = page.get_by_role("dialog", name="Task")
    await expect(sheet.locator("pre")).to_contain_text('"seed": 11')
    await sheet.get_by_role("button", name="Use in the form").click()
    await expect(page.get_by_label("Prompt")).to_have_value("a red apple")
    await expect(page.get_by_label("Seed")).to_have_value("11")


async def test_a_prompt_is_text_and_never_markup(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    words = "<img src=x onerror=alert(1)> & <b>bold</b>"
    await api.submitted(text=words)
    await page.goto(api.url)
    await expect(page.get_by_role("list", name="Recent tasks").get_by_role("button")).to_have_text(words)


async def test_a_refusal_is_shown_at_its_field(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    await page.goto(api.url)
    await page.get_by_role("button", name="Draw it").click()
    await expect(page.get_by_role("alert").filter(has_text="Say what the picture shall show.")).to_be_visible()
    prompt = page.get_by_label("Prompt")
    await expect(prompt).to_be_focused()
    await expect(prompt).to_have_attribute("aria-invalid", "true")
    await prompt.fill("a cat")
    await page.get_by_label("Seed").fill("99999999999999999999")
    await page.get_by_role("button", name="Draw it").click()
    await expect(page.get_by_role("alert").filter(has_text="seed")).to_be_visible()
    await expect(page.get_by_label("Seed")).to_be_focused()


async def test_a_service_that_goes_away_is_missed(api: Api, chromium_page: Page, faults: list[str]) -> None:
    page = chromium_page
    await failed(api)
    await page.goto(api.url)
    await expect(page.get_by_text("ask for fewer pictures")).to_be_visible()
    await page.context.set_offline(True)
    await expect(page.get_by_role("heading", name="The service does not answer")).to_be_visible(timeout=20_000)
    await expect(page.get_by_text("ask for fewer pictures")).to_be_visible()
    await page.context.set_offline(False)
    await expect(page.get_by_role("heading", name="The service does not answer")).to_be_hidden(timeout=20_000)


async def test_a_dependency_that_does_not_answer_is_named(
    api: Api, broken: Any, chromium_page: Page, faults: list[str]
) -> None:
    page = chromium_page
    await page.goto(api.url)
    broken()
    await expect(page.get_by_role("heading", name="Not ready")).to_be_visible(timeout=20_000)
    checks = page.get_by_role("list", name="What the service depends on")
    await expect(checks.locator('[data-ok="no"]').filter(has_text="database")).to_be_visible()


async def test_the_reference_names_every_operation_with_a_command(
    api: Api, chromium_page: Page, faults: list[str]
) -> None:
    page = chromium_page
    document = (await api.get("/openapi.json")).json
    named = [what["summary"] for item in document["paths"].values() for what in item.values() if isinstance(what, dict)]
    await page.goto(f"{api.url}/docs")
    index = page.get_by_role("navigation", name="Operations")
    for name in named:
        await expect(index.get_by_role("link", name=name, exact=True)).to_be_visible()
    await expect(page.locator(".operation pre")).to_have_count(len(named))
    command = await page.locator("#op-submitATask pre").inner_text()
    assert command.startswith(f"curl -X POST '{api.url}/api/v1/image/generate'")
    assert '"text":"a cute panda"' in command
