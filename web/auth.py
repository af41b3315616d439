"""Who asks: the bearer of one of the API keys, or, where none are set, ``local``.

A key is written as ``NAME:SECRET`` or as a secret alone. Users see their own tasks only; a user is the name of a key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web
from pydantic import SecretStr

from streamapp.errors import AppError
from web.answers import API
from web.errors import Handler

LOCAL = "local"
#: A key's name may not be mistaken for a part of its secret.
NAMED = re.compile(r"([A-Za-z][A-Za-z0-9._-]{0,63}):(.{8,})\Z")
USER: Final = web.RequestKey("user", str)


class Unauthorized(AppError):
    """No key was sent, or an unknown one."""

    code = "unauthorized"
    status = 401


def attach(app: Any) -> None:
    """Check the key of every request to the API; pages, health and signed addresses of pictures need none."""
    users = known_users(app.settings.api_keys)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not users:
            request[USER] = LOCAL
        elif request.path.startswith(f"{API}/"):
            request[USER] = user_of(request, users)
        return await handler(request)

    app.web.web_app.middlewares.append(authenticate)


def known_users(keys: Iterable[SecretStr]) -> dict[bytes, str]:
    """User by digest of the key; looking up a digest says nothing about the key through its time."""
    users = {}
    for key in keys:
        text = key.get_secret_value()
        named = NAMED.match(text)
        digest = _digest(text)
        user = named[1] if named else f"key-{digest.hex()[:8]}"
        users[digest] = user
        if named:
            users[_digest(named[2])] = user
    return users


def user_of(request: web.Request, users: dict[bytes, str]) -> str:
    """The user whose key the request carries.

    Raises:
        Unauthorized: there is none, or it is not known.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")
    if not given:
        raise Unauthorized("send an API key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`")
    user = users.get(_digest(given))
    if user is None:
        raise Unauthorized("this API key is not known here")
    return user


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
