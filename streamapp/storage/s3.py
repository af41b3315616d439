"""S3, or a server that speaks its protocol, as storage: one long-lived client, usual ``AWS_*`` variables."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from streamapp.errors import ConfigError, NotFound, Unavailable
from streamapp.storage.keys import checked_key
from streamapp.storage.port import CHUNK, ObjectInfo

#: Objects larger than this go up in parts of this size, in bytes (the protocol's least is 5 MiB).
PART = 16 * 1024**2
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
#: What is wrong with the set-up rather than with the moment, in words that say what to change.
HINTS = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct STREAMAPP_STORAGE",
    "403": "access is denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "AccessDenied": "access is denied: check the policy of the bucket and of the credentials",
    "InvalidAccessKeyId": "the access key is not known there: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
}


class S3Storage:
    """Objects in ``bucket`` below ``prefix``. Credentials and region come from botocore's own chain."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, part: int = PART, attempts: int = 2
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._part = part
        self._attempts = attempts
        self._stack = AsyncExitStack()
        self._open: Any = None

    async def start(self) -> None:
        """Open the client; nothing goes over the network yet.

        Raises:
            ConfigError: when botocore cannot make sense of the settings.
        """
        custom = self._endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = AioConfig(
            signature_version="s3v4",
            # Servers other than Amazon's seldom have a host name per bucket, nor the newest checksums.
            s3={"addressing_style": "path" if custom else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": self._attempts},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=50,
        )
        # botocore itself reads AWS_DEFAULT_REGION and profiles only.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        session = get_session()
        if region is None and session.get_config_variable("region") is None:
            region = "us-east-1"
        try:
            client = session.create_client("s3", region_name=region, endpoint_url=self._endpoint, config=config)
            self._open = await self._stack.enter_async_context(client)
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"the S3 storage cannot be set up: {error}", field="storage") from error

    async def close(self) -> None:
        """Close the client and its connections."""
        self._open = None
        await self._stack.aclose()

    async def ping(self) -> None:
        """Ask for the bucket."""
        with self._translated():
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) in MISSING:
                    raise Unavailable(f"S3 bucket {self._bucket}: {HINTS['NoSuchBucket']}") from error
                raise

    async def put(self, key: str, data: bytes | Path, content_type: str) -> None:
        """One request, or parts when it is large; a broken-off upload leaves nothing behind."""
        place = self._place(key)
        size = len(data) if isinstance(data, bytes) else (await asyncio.to_thread(data.stat)).st_size
        with self._translated():
            if size <= self._part:
                body = data if isinstance(data, bytes) else await asyncio.to_thread(data.read_bytes)
                await self._client.put_object(**place, Body=body, ContentType=content_type)
            else:
                await self._put_parts(place, data, size, content_type)

    async def head(self, key: str) -> ObjectInfo | None:
        """What the server knows about an object."""
        place = self._place(key)
        with self._translated():
            try:
                found = await self._client.head_object(**place)
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        modified_ms = int(found["LastModified"].timestamp() * 1000)
        content_type = found.get("ContentType", "application/octet-stream")
        return ObjectInfo(found["ContentLength"], content_type, found["ETag"], modified_ms)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Chunks of the object as they arrive."""
        place = self._place(key)
        if end is not None and end <= start:
            if await self.head(key) is None:
                raise NotFound(f"there is no object {key}", key=key)
            return
        if start or end is not None:
            place["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._translated():
            try:
                answer = await self._client.get_object(**place)
            except ClientError as error:
                if _code(error) in MISSING:
                    raise NotFound(f"there is no object {key}", key=key) from error
                if _code(error) in {"InvalidRange", "416"}:
                    return
                raise
            async with answer["Body"] as body:
                async for chunk in body.iter_chunks(CHUNK):
                    yield chunk

    async def delete(self, key: str) -> None:
        """Remove an object."""
        place = self._place(key)
        with self._translated():
            await self._client.delete_object(**place)

    async def url(self, key: str, *, expires_s: int = 3600, filename: str | None = None) -> str:
        """A presigned address at the server itself; its signature dies with the credentials at the latest."""
        place = self._place(key)
        if filename:
            place["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        with self._translated():
            return str(await self._client.generate_presigned_url("get_object", Params=place, ExpiresIn=expires_s))

    @property
    def _client(self) -> Any:
        if self._open is None:
            raise Unavailable("the storage is not started")
        return self._open

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    async def _put_parts(self, place: dict[str, str], data: bytes | Path, size: int, content_type: str) -> None:
        upload = await self._client.create_multipart_upload(**place, ContentType=content_type)
        whole = {**place, "UploadId": upload["UploadId"]}
        try:
            parts = []
            for number, at in enumerate(range(0, size, self._part), start=1):
                body = await asyncio.to_thread(_slice, data, at, self._part)
                answer = await self._client.upload_part(**whole, PartNumber=number, Body=body)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            await self._client.complete_multipart_upload(**whole, MultipartUpload={"Parts": parts})
        except BaseException:
            # Parts that nobody completes are kept, unseen, and paid for; a cancelled upload too must clean up.
            with suppress(ClientError, BotoCoreError):
                await asyncio.shield(self._client.abort_multipart_upload(**whole))
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Failures of botocore in the application's words."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            why = HINTS.get(code, f"the server answered {code}")
            raise Unavailable(f"S3 bucket {self._bucket}: {why}", s3_code=code) from error
        except BotoCoreError as error:
            raise Unavailable(f"S3 bucket {self._bucket}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _slice(data: bytes | Path, start: int, length: int) -> bytes:
    """One part of an upload; blocks when it comes from a file."""
    if isinstance(data, bytes):
        return data[start : start + length]
    with data.open("rb") as file:
        file.seek(start)
        return file.read(length)
