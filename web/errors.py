"""Every error as ``{code, message, …}`` with the right status, and one line of log per request."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from yarl import URL

from streamapp.errors import AppError, InvalidRequest, NotFound, TooLarge
from streamapp.telemetry import bind, get_logger
from web.answers import raw

log = get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
#: Slower answers are worth a line, in seconds: the API promises 0.1.
SLOW = 1.0


class Forbidden(AppError):
    """A page of another site sent this request through its visitor's browser."""

    code = "forbidden"
    status = 403


def attach(app: Any) -> None:
    """The outermost middleware."""
    public = app.settings.public_url
    own = str(URL(public).origin()).rpartition("://")[2] if public else None

    @web.middleware
    async def answer_all(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await answer_errors(request, handler, own)

    app.web.web_app.middlewares.append(answer_all)


async def answer_errors(request: web.Request, handler: Handler, own: str | None = None) -> web.StreamResponse:
    """Answer errors in our form; give every request an id that the log and the answer share.

    ``own`` is the host under which browsers know the service, where a proxy shows it another one.
    """
    given = request.headers.get("X-Request-Id", "")
    request_id = given if REQUEST_ID.match(given) else secrets.token_hex(8)
    began = time.perf_counter()
    with bind(request_id=request_id):
        try:
            refuse_other_sites(request, own)
            response = await handler(request)
        except AppError as error:
            response = of_error(error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = of_http(request, error)
        except web.RequestPayloadError as error:
            response = of_error(InvalidRequest(f"the body does not arrive as its headers say: {str(error)[:200]}"))
        except ConnectionResetError:
            raise  # the client went away: nobody is there to be answered
        except Exception:  # supervised: a defect answers 500 in our form and leaves its traceback in the log
            log.exception("a request failed", action="request_failed", method=request.method, path=request.path)
            message = f"this is a defect of the service; its log has the details under request id {request_id}"
            response = raw({"code": "internal_error", "message": message, "request_id": request_id}, 500)
        seconds = time.perf_counter() - began
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
            response.headers["X-Content-Type-Options"] = "nosniff"
        _note(request, response, seconds)
    return response


def _note(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    """What changes something, fails or is slow is for the operator; the rest for debugging."""
    stream = response.content_type == "text/event-stream"
    probe = request.path in {"/healthz", "/readyz"}
    notable = request.method not in {"GET", "HEAD"} or response.status >= 500 or (seconds > SLOW and not stream)
    (log.info if notable and not probe else log.debug)(
        "request",
        action="request",
        method=request.method,
        path=request.path,
        status=response.status,
        ms=round(seconds * 1000, 1),
    )


def refuse_other_sites(request: web.Request, own: str | None = None) -> None:
    """A browser says where a request comes from; a foreign page must not submit or cancel in its visitor's name."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    origin = request.headers.get("Origin")
    if origin is None:
        return
    if origin.rpartition("://")[2] not in {request.host, own}:
        # A header may hold bytes that no answer can.
        shown = origin[:100].encode("ascii", "backslashreplace").decode()
        raise Forbidden(f"requests from pages of {shown} are refused; send them from your own server")


def of_error(error: AppError) -> web.Response:
    """An application error; its ``retry_after`` also as a header."""
    body = {"code": error.code, "message": error.message, **error.details}
    retry_after = error.details.get("retry_after")
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return raw(body, error.status, headers)


def of_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """An error of the web framework in our form."""
    match error:
        case web.HTTPNotFound():
            return of_error(NotFound(f"there is nothing at {request.path[:200]}; /docs describes the API"))
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            body = {"code": "method_not_allowed", "message": f"{request.path[:200]} takes {allowed}"}
            return raw(body, 405, {"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            limit = request.client_max_size
            return of_error(TooLarge(f"the request is larger than {limit} bytes, the limit here", limit=limit))
        case _:
            refused = InvalidRequest(error.text or error.reason)
            refused.status = error.status
            return of_error(refused)
