"""Errors that mean something to a user or an operator, as data.

HTTP bodies, dead letters and retry decisions are all derived from these attributes, so an error
is described once, where it is raised.
"""

from __future__ import annotations

from typing import Any


class AppError(Exception):
    """Base of every error with a meaning outside the module that raised it.

    Attributes:
        code: stable machine-readable word (``snake_case``).
        status: HTTP status the error answers with.
        retryable: whether doing the same again, unchanged, may succeed.
        message: one sentence for a person: what is wrong and what to change.
        details: extra JSON-serialisable facts (``field``, ``known``, ``retry_after`` …).
    """

    code: str = "internal_error"
    status: int = 500
    retryable: bool = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON-serialisable data, as kept in rows and dead letters."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable, **self.details}


class InvalidRequest(AppError):
    """The request names something that cannot be done as asked."""

    code = "invalid_request"
    status = 400


class NotFound(AppError):
    """The named thing does not exist (or not for this user)."""

    code = "not_found"
    status = 404


class Conflict(AppError):
    """The thing exists, but not in a state that allows this."""

    code = "conflict"
    status = 409


class TooLarge(AppError):
    """The request or message is larger than a limit in the settings."""

    code = "too_large"
    status = 413


class Overloaded(AppError):
    """The service is full; ``details["retry_after"]`` says when to come again, in seconds."""

    code = "overloaded"
    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after: int, **details: Any) -> None:
        super().__init__(message, retry_after=retry_after, **details)


class Unavailable(AppError):
    """Something this process depends on does not answer; ``details["retry_after"]`` in seconds."""

    code = "unavailable"
    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after: int = 5, **details: Any) -> None:
        super().__init__(message, retry_after=retry_after, **details)


class BadMessage(AppError):
    """A record on a topic that is not ours, malformed, too large or of an unknown version."""

    code = "bad_message"


class ConfigError(AppError):
    """A setting is unknown, malformed or contradicts another; the process must not start."""

    code = "bad_setting"


class PartitionMismatch(ConfigError):
    """A topic exists with another number of partitions than the settings ask for."""

    code = "partition_mismatch"
