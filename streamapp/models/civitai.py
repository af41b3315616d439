"""Civitai's public API (https://developer.civitai.com/docs/api/public-rest): from a reference to an offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamapp.errors import AppError, InvalidRequest, NotFound
from streamapp.guarded import FetchFailed, GuardedClient
from streamapp.models.answers import NeedsToken, NotAllowed
from streamapp.models.download import Remote
from streamapp.models.offer import SHA256, Offer, family_of_base, variant_of
from streamapp.models.reference import Civitai, Digest

TYPES: Mapping[str, Literal["model", "lora", "controlnet"]] = {
    "Checkpoint": "model",
    "LORA": "lora",
    "LoCon": "lora",
    "DoRA": "lora",
    "Controlnet": "controlnet",
}
#: The kinds of file that hold what the page is about, the best first.
FILES = ("Model", "Pruned Model", "ControlNet")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class _File(_Answer):
    id: int
    name: str = ""
    type: str = ""
    primary: bool = False
    kilobytes: float = Field(0, alias="sizeKB")
    hashes: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    pickle_scan: str = Field("", alias="pickleScanResult")
    virus_scan: str = Field("", alias="virusScanResult")

    @property
    def sha256(self) -> str | None:
        """In lower case, where the site tells one; what is none would end up in a path."""
        digest = self.hashes.get("SHA256", "").lower()
        return digest if SHA256.match(digest) else None

    @property
    def safe(self) -> bool:
        """Safetensors that both of the site's scanners passed."""
        return self.metadata.get("format") == "SafeTensor" and self.pickle_scan == "Success" == self.virus_scan


class _About(_Answer):
    name: str = ""
    type: str = ""
    nsfw: bool = False


class _Version(_Answer):
    id: int
    model_id: int = Field(alias="modelId")
    name: str = ""
    air: str | None = None
    base: str = Field("", alias="baseModel")
    base_type: str | None = Field(None, alias="baseModelType")
    usage: str = Field("Download", alias="usageControl")
    availability: str = "Public"
    early_until: str | None = Field(None, alias="earlyAccessEndsAt")
    words: list[str] = Field(default_factory=list, alias="trainedWords")
    nsfw_level: int = Field(0, alias="nsfwLevel")
    model: _About = _About()
    files: list[_File] = []


class _Listed(_Answer):
    id: int
    name: str = ""


class _Model(_Answer):
    versions: list[_Listed] = Field(default_factory=list, alias="modelVersions")
    commercial: Any = Field(None, alias="allowCommercialUse")
    derivatives: bool | None = Field(None, alias="allowDerivatives")
    no_credit: bool | None = Field(None, alias="allowNoCredit")


class CivitaiSite:
    """The site, or a mirror of it, at ``base``; ``token`` is an API key of the operator, sent to that host only."""

    def __init__(self, client: GuardedClient, base: str, token: str | None) -> None:
        self._client = client
        self._base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def offer(self, wanted: Civitai | Digest) -> Offer:
        """The version that is meant, and of its files the one that is meant or else the best.

        Raises:
            NotFound: the site has no such model, version or file.
            InvalidRequest: it is of a kind or architecture that cannot be drawn with, or has no safe file.
            NotAllowed, NeedsToken: its maker does not let it be downloaded, or not by everybody.
            FetchFailed: the site does not answer in its form.
        """
        version = await self._version(wanted)
        model = _Model.model_validate(await self._ask(f"models/{version.model_id}", f"model {version.model_id}"))
        title = f"{version.model.name or version.model_id} {version.name}".strip()
        kind = TYPES.get(version.model.type)
        if kind is None:
            raise InvalidRequest(
                f"{title} is a {version.model.type or 'thing without a type'}: only checkpoints, "
                "LoRAs and ControlNets are used here"
            )
        if version.usage != "Download":
            raise NotAllowed(f"{title}: its maker allows {version.usage} on the site only, not the download")
        if version.availability == "EarlyAccess" and not self._headers:
            until = f" until {version.early_until[:10]}" if version.early_until else ""
            raise NotAllowed(
                f"{title} is in early access{until}: wait, or get access on its page and set STREAMAPP_CIVITAI_TOKEN "
                "to an API key of that account"
            )
        family = family_of_base(version.base)
        if family is None:
            raise InvalidRequest(
                f"{title} is made for {version.base or 'no named base model'}, which is not drawn here"
            )
        file = self._file(version, wanted, title)
        url = f"{self._base}/api/download/models/{version.id}?fileId={file.id}"
        return Offer(
            kind=kind,
            title=version.model.name or f"civitai-{version.model_id}",
            version=version.name or str(version.id),
            family=family,
            file=Remote(url, title, file.sha256, headers=self._headers),
            traits={
                **_traits(version, model),
                "page": f"{self._base}/models/{version.model_id}?modelVersionId={version.id}",
            },
            about=int(file.kilobytes * 1024) or None,
            reference=_reference(version, wanted, file),
        )

    async def _version(self, wanted: Civitai | Digest) -> _Version:
        if isinstance(wanted, Digest):
            path, what = f"model-versions/by-hash/{wanted.hex}", f"a file with digest {wanted.hex[:10]}…"
        elif wanted.version_id is not None:
            path, what = f"model-versions/{wanted.version_id}", f"version {wanted.version_id}"
        else:
            model = _Model.model_validate(await self._ask(f"models/{wanted.model_id}", f"model {wanted.model_id}"))
            if not model.versions:
                raise NotFound(f"model {wanted.model_id} of Civitai has no published version")
            path, what = f"model-versions/{model.versions[0].id}", f"version {model.versions[0].id}"
        model_id = wanted.model_id if isinstance(wanted, Civitai) else None
        try:
            version = _Version.model_validate(await self._ask(path, what))
        except ValidationError as error:
            raise FetchFailed(f"Civitai describes {what} in a form that is not known here") from error
        except NotFound as error:
            raise NotFound(f"{error.message}{await self._versions(model_id)}") from error
        if model_id is not None and version.model_id != model_id:
            raise NotFound(f"version {version.id} of Civitai belongs to model {version.model_id}, not {model_id}")
        return version

    async def _versions(self, model_id: int | None) -> str:
        """The versions that a model does have, for who named another one."""
        if model_id is None:
            return ""
        try:
            model = _Model.model_validate(await self._ask(f"models/{model_id}", f"model {model_id}"))
        except AppError:
            return ""
        there = ", ".join(f"civitai:{model_id}@{one.id} ({one.name})" for one in model.versions[:5])
        return f"; published are {there}" if there else ""

    def _file(self, version: _Version, wanted: Civitai | Digest, title: str) -> _File:
        if isinstance(wanted, Digest):
            meant = [f for f in version.files if (f.sha256 or "").startswith(wanted.hex)]
        elif wanted.file_id is not None:
            meant = [f for f in version.files if f.id == wanted.file_id]
            if not meant:
                raise NotFound(f"{title} has no file {wanted.file_id}")
        else:
            meant = [f for f in version.files if f.type in FILES]
        safe = sorted((f for f in meant if f.safe), key=lambda f: (not f.primary, f.type != FILES[0]))
        if not safe:
            raise InvalidRequest(
                f"{title} has no safetensors file that passed the site's scans: pickled files can run code and are "
                "not fetched"
            )
        return safe[0]

    async def _ask(self, path: str, what: str) -> Any:
        answer = await self._client.request("GET", f"{self._base}/api/v1/{path}", headers=self._headers)
        if answer.status in {404, 410}:
            raise NotFound(f"Civitai knows no {what}")
        if answer.status == 401:
            raise NeedsToken(
                f"Civitai shows {what} to known people only: set STREAMAPP_CIVITAI_TOKEN to an API key of yours"
            )
        if answer.status == 403:
            raise NotAllowed(f"Civitai does not show {what} to you")
        try:
            body = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            body = None
        if answer.status != 200 or not isinstance(body, dict):
            raise FetchFailed(f"Civitai answered {answer.status} when asked for {what}")
        return body


def _reference(version: _Version, wanted: Civitai | Digest, file: _File) -> str:
    """What leads to this file again, also when its page has newer ones by then."""
    if isinstance(wanted, Civitai) and wanted.file_id is not None:
        return f"https://civitai.com/api/download/models/{version.id}?fileId={file.id}"
    if isinstance(wanted, Digest):
        return file.sha256 or wanted.hex
    return f"civitai:{version.model_id}@{version.id}"


def _traits(version: _Version, model: _Model) -> dict[str, Any]:
    """What the page says that a user or an operator wants to know."""
    traits: dict[str, Any] = {
        "title": f"{version.model.name} {version.name}".strip(),
        "base_model": version.base,
        "trigger_words": version.words,
        "nsfw": version.model.nsfw,
        "nsfw_level": version.nsfw_level,
        "license": {
            "commercial_use": model.commercial,
            "derivatives": model.derivatives,
            "without_credit": model.no_credit,
        },
        **variant_of(version.base, version.name),
    }
    if version.air:
        traits["air"] = version.air
    if version.base_type == "Inpainting":
        traits["inpainting"] = True
    return traits
