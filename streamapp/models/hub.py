"""The Hugging Face Hub's public API: from a repository, or a file in it, to an offer.

Answers are described at https://huggingface.co/docs/hub/api; a file kept in large-file storage carries its SHA-256.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamapp.errors import InvalidRequest, NotFound
from streamapp.guarded import FetchFailed, GuardedClient
from streamapp.models.answers import NeedsToken, NotAllowed
from streamapp.models.download import Remote
from streamapp.models.offer import Offer, variant_of
from streamapp.models.reference import Hub
from streamapp.models.safe import PICKLED

WEIGHTS = ".safetensors"


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class _Large(_Answer):
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    size: int


class _File(_Answer):
    name: str = Field(alias="rfilename")
    size: int | None = None
    lfs: _Large | None = None


class _Repo(_Answer):
    id: str
    sha: str = "main"
    gated: bool | str = False
    tags: list[str] = []
    card: dict[str, Any] = Field(default_factory=dict, alias="cardData")
    files: list[_File] = Field(default_factory=list, alias="siblings")


class HubSite:
    """The Hub, or a mirror of it, at ``base``; ``token`` is an access token of the operator, sent to that host only."""

    def __init__(self, client: GuardedClient, base: str, token: str | None) -> None:
        self._client = client
        self._base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def offer(self, wanted: Hub) -> Offer:
        """The file that is meant: the one that is named, or the only weights beside the repository's card.

        Whether it is a model or a LoRA, and of which family, its tensors will tell.

        Raises:
            NotFound: there is no such repository, revision or file.
            InvalidRequest: the repository has several weights, or only pickled ones.
            NotAllowed, NeedsToken: its owner gives it to known people, or not to everybody.
            FetchFailed: the Hub does not answer in its form.
        """
        repo = await self._repo(wanted)
        file = self._file(repo, wanted)
        tags = {tag.lower() for tag in repo.tags}
        adapter = "lora" in tags or "lora" in file.name.lower()
        steers = not adapter and ("controlnet" in tags or "control" in f"{wanted.repo} {file.name}".lower())
        url = f"{self._base}/{wanted.repo}/resolve/{quote(repo.sha)}/{quote(file.name)}"
        digest = file.lfs.sha256.lower() if file.lfs else None
        size = file.lfs.size if file.lfs else file.size
        traits = {
            "title": wanted.repo,
            "base_model": repo.card.get("base_model"),
            "license": repo.card.get("license"),
            "page": f"{self._base}/{wanted.repo}",
            "gated": bool(repo.gated),
            **variant_of(wanted.repo, file.name),
        }
        if words := repo.card.get("instance_prompt"):
            traits["trigger_words"] = [str(words)]
        name = f"{wanted.repo}:{file.name}"
        return Offer(
            kind="lora" if adapter else "controlnet" if steers else "model",
            title=wanted.repo.rpartition("/")[2],
            version=repo.sha[:10],
            family=None,
            file=Remote(url, name, digest, size, headers=self._headers),
            traits=traits,
            reference=f"https://huggingface.co/{wanted.repo}/resolve/{repo.sha}/{file.name}",
        )

    async def _repo(self, wanted: Hub) -> _Repo:
        url = f"{self._base}/api/models/{wanted.repo}/revision/{quote(wanted.revision, safe='')}?blobs=true"
        answer = await self._client.request("GET", url, headers=self._headers)
        # The Hub says 401 for what does not exist, so that nobody learns what is private.
        if answer.status in {401, 404} and not self._headers:
            raise NotFound(
                f"the Hub shows no repository {wanted.repo} at {wanted.revision}; when it is private, set "
                "STREAMAPP_HUB_TOKEN to an access token of yours"
            )
        if answer.status == 404:
            raise NotFound(f"the Hub has no repository {wanted.repo} at {wanted.revision}")
        if answer.status == 401:
            raise NeedsToken(f"the Hub does not know the access token in STREAMAPP_HUB_TOKEN, asked for {wanted.repo}")
        if answer.status == 403:
            raise NotAllowed(f"open {self._base}/{wanted.repo}, accept its terms, and try again")
        try:
            if answer.status != 200:
                raise FetchFailed(f"the Hub answered {answer.status} when asked for {wanted.repo}")
            return _Repo.model_validate(orjson.loads(answer.body))
        except (orjson.JSONDecodeError, ValidationError) as error:
            raise FetchFailed(f"the Hub describes {wanted.repo} in a form that is not known here") from error

    def _file(self, repo: _Repo, wanted: Hub) -> _File:
        if wanted.file is not None:
            found = next((file for file in repo.files if file.name == wanted.file), None)
            if found is None:
                there = ", ".join(file.name for file in repo.files if file.name.endswith(WEIGHTS))[:300]
                hint = f"; its weights are {there}" if there else ""
                raise NotFound(f"{wanted.repo} has no file {wanted.file} at {wanted.revision}{hint}")
            if not found.name.endswith(WEIGHTS):
                raise InvalidRequest(f"{wanted.repo}:{wanted.file} is not a .safetensors file, and others are not read")
            return found
        top = [file for file in repo.files if "/" not in file.name]
        weights = [file for file in top if file.name.endswith(WEIGHTS)]
        if len(weights) == 1:
            return weights[0]
        if weights:
            names = ", ".join(file.name for file in weights[:8])
            raise InvalidRequest(f"{wanted.repo} has several weights, name one as {wanted.repo}:FILE ({names})")
        if any(file.name.endswith(tuple(PICKLED)) for file in top):
            raise InvalidRequest(f"{wanted.repo} has pickled weights only, which can run code and are not fetched")
        raise InvalidRequest(
            f"{wanted.repo} has no weights beside its card: name a file as {wanted.repo}:FOLDER/FILE.safetensors, or "
            "fetch the folder yourself and add it with `streamapp models add`"
        )
