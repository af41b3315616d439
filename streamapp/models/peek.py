"""The header of a safetensors file that lies elsewhere: what it holds is known before it is fetched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamapp.errors import InvalidRequest
from streamapp.guarded import FetchFailed, GuardedClient
from streamapp.models.answers import check_answer, pause_asked, total_size
from streamapp.models.download import Remote
from streamapp.models.kinds import describe
from streamapp.models.offer import Offer
from streamapp.models.safe import header_of

#: Headers of the largest checkpoints have a few megabytes; more is not read for somebody who only asks, bytes.
MAX_HEADER = 16 * 1024**2


async def told(client: GuardedClient, offer: Offer) -> Offer:
    """The offer with the kind and family that its tensors tell, where its page does not.

    Raises:
        InvalidRequest: it is no safetensors file, or none whose family can be told.
        AppError: its site says no, see :func:`check_answer`.
    """
    if offer.family is not None:
        return offer
    found = describe(await remote_header(client, offer.file))
    kind: Any = found.kind
    if found.family is None:
        raise InvalidRequest(
            f"the family of {offer.file.name} cannot be told from its tensors: its operator can add it"
        )
    return replace(offer, kind=kind, family=found.family, traits={**offer.traits, **found.traits})


async def remote_header(client: GuardedClient, remote: Remote) -> dict[str, Any]:
    """The header of a file elsewhere; reads no further than that."""
    asked = {**remote.headers, "Range": f"bytes=0-{MAX_HEADER + 7}"}
    async with client.stream(remote.url, headers=asked) as answer:
        if pause_asked(answer) is not None:
            raise FetchFailed(f"{remote.name}: {answer.status} from {answer.url.host}")
        await check_answer(remote.name, answer)
        total = total_size(answer) or remote.size or 0
        try:
            length = int.from_bytes(await answer.content.readexactly(8), "little")
            if not 2 <= length <= min(MAX_HEADER, total - 8):
                raise InvalidRequest(f"{remote.name} is not a whole safetensors file of weights")
            raw = await answer.content.readexactly(length)
        except EOFError as error:  # asyncio.IncompleteReadError is one
            raise FetchFailed(f"{remote.name}: its header did not come whole") from error
    return header_of(raw, total, remote.name)
