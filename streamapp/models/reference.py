"""What a request may call a model or LoRA, read without asking anybody.

Understood are: a registered name; ``civitai:MODEL@VERSION`` and addresses of Civitai pages and downloads; AIR URNs
(https://developer.civitai.com/docs/air); a SHA-256 or the first ten digits of it (AutoV2); a Hub repository,
``owner/name`` or ``owner/name:file``, and addresses of its files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from streamapp.errors import InvalidRequest

#: Civitai serves the same models under several names.
CIVITAI_HOSTS = frozenset({"civitai.com", "www.civitai.com", "civitai.green", "civitai.red"})
HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})

_CIVITAI = re.compile(r"civitai:(?P<model>\d+)(?:@(?P<version>\d+))?\Z", re.IGNORECASE)
_AIR = re.compile(
    r"(?:urn:)?(?:air:)?(?P<ecosystem>[a-z0-9_-]+):(?P<type>[a-z_]+):(?P<source>civitai|huggingface):"
    r"(?P<id>[^@+\s]+)(?:@(?P<version>[^+.\s]+))?(?:\+(?P<file>\d+))?(?:\.(?P<format>[a-z]+))?\Z",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"(?:sha256:|autov2:)?(?P<hex>[0-9a-f]{64}|[0-9a-f]{10})\Z", re.IGNORECASE)
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"(?:hf:)?(?P<repo>{_REPO})(?::(?P<file>[^:\s]+))?\Z")
_HUB_PAGE = re.compile(rf"/(?P<repo>{_REPO})(?:/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<file>.+))?/?\Z")
_CIVITAI_PAGE = re.compile(r"/models/(?P<model>\d+)(?:/.*)?\Z")
_CIVITAI_DOWNLOAD = re.compile(r"/api/download/models/(?P<version>\d+)/?\Z")


@dataclass(frozen=True, slots=True)
class Named:
    """A name in the registry."""

    name: str


@dataclass(frozen=True, slots=True)
class Civitai:
    """A model or one version of it, and one file of that, by their numbers; one of the first two is set."""

    model_id: int | None = None
    version_id: int | None = None
    file_id: int | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256 of a file, whole (64 hex digits) or its first ten, in lower case."""

    hex: str


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of the Hugging Face Hub, or one file in it."""

    repo: str
    file: str | None = None
    revision: str = "main"


Reference = Named | Civitai | Digest | Hub


def read_reference(text: str) -> Reference:
    """What ``text`` refers to; anything of no other form is a name.

    A registered name may look like another form (ten hex digits, say): ask the registry for the text as it is first.

    Raises:
        InvalidRequest: for an address of another site, or one that leads to no model, and for Hub files whose path
            leads upwards.
    """
    text = text.strip()
    if "://" in text:
        return _address(text)
    if match := _CIVITAI.match(text):
        return Civitai(int(match["model"]), _number(match["version"]))
    if match := _AIR.match(text):
        return _air(match, text)
    if match := _DIGEST.match(text):
        return Digest(match["hex"].lower())
    if match := _HUB.match(text):
        return Hub(match["repo"], _inside(match["file"], text))
    return Named(text)


def _address(text: str) -> Reference:
    try:
        parts = urlsplit(text)
    except ValueError as error:  # brackets that hold no IPv6 address
        raise InvalidRequest(f"{text} is no web address") from error
    if "@" in parts.netloc:
        raise InvalidRequest(f"{parts.scheme}://…@…: an address of a model holds no user name")
    host, path = (parts.hostname or "").lower(), unquote(parts.path)
    asked = parse_qs(parts.query)
    if parts.scheme in {"http", "https"} and host in CIVITAI_HOSTS:
        if match := _CIVITAI_DOWNLOAD.match(path):
            return Civitai(None, int(match["version"]), _asked(asked, "fileId", text))
        if match := _CIVITAI_PAGE.match(path):
            return Civitai(int(match["model"]), _asked(asked, "modelVersionId", text))
        raise InvalidRequest(f"{text} is no page of a model: it should read https://civitai.com/models/NUMBER…")
    if parts.scheme in {"http", "https"} and host in HUB_HOSTS:
        if match := _HUB_PAGE.match(path):
            return Hub(match["repo"], _inside(match["file"], text), match["revision"] or "main")
        raise InvalidRequest(f"{text} is no page of a repository: it should read https://huggingface.co/OWNER/NAME…")
    raise InvalidRequest(
        f"{host or text} is no site that models are fetched from: use Civitai, the Hugging Face Hub, or add the file "
        "with `streamapp models add`"
    )


def _air(match: re.Match[str], text: str) -> Reference:
    if match["source"].lower() == "huggingface":
        hub = _HUB.match(match["id"])
        if hub is None:
            raise InvalidRequest(f"{text}: {match['id']} is no repository of the Hub (OWNER/NAME)")
        return Hub(hub["repo"], _inside(hub["file"], text), match["version"] or "main")
    version = match["version"]
    if not match["id"].isdigit() or not (version is None or version.isdigit()):
        raise InvalidRequest(f"{text}: models and versions of Civitai are numbers (…:civitai:123@456)")
    return Civitai(int(match["id"]), _number(version), _number(match["file"]))


def _inside(file: str | None, text: str) -> str | None:
    """A path inside a repository, which never leads out of it."""
    if file is not None and (file.startswith("/") or "\\" in file or ".." in file.split("/")):
        raise InvalidRequest(f"{text}: {file} leads out of the repository")
    return file


def _asked(asked: dict[str, list[str]], key: str, text: str) -> int | None:
    values = asked.get(key)
    if values and not values[0].isdigit():
        raise InvalidRequest(f"{text}: {key} must be a number")
    return int(values[0]) if values else None


def _number(digits: str | None) -> int | None:
    return None if digits is None else int(digits)
