"""Keys of pictures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamapp.storage import checked_key, image_key


def test_a_picture_lies_by_date_shard_and_task() -> None:
    key = image_key("img-20261123-0abc", 2)
    assert key.startswith("images/2026/11/23/")
    assert key.endswith("/img-20261123-0abc/2.png")
    assert image_key("img-20261123-0abc", 2) == key


def test_other_task_ids_have_a_place_too() -> None:
    assert image_key("task7", 0, "webp").startswith("images/undated/")


@given(st.from_regex(r"img-[0-9]{8}-[0-9a-z]{1,30}", fullmatch=True), st.integers(0, 999))
def test_every_picture_has_a_legal_key_of_its_own(task_id: str, index: int) -> None:
    key = image_key(task_id, index)
    assert checked_key(key) == key
    assert key != image_key(task_id, index + 1)
    assert key != image_key(task_id + "0", index)
