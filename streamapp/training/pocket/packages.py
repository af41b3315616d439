"""The two npm packages that the data comes from, fetched by npm's own client and checked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """A package of one version; ``integrity`` is the SHA-512 of its archive as npm writes it."""

    name: str
    version: str
    integrity: str
    licence: str

    @property
    def archive(self) -> str:
        """The file that ``npm pack`` makes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


#: Noto Emoji as SVG.
ICONS = Package(
    "@iconify-json/noto",
    "1.2.9",
    "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "Apache-2.0",
)
#: Names and tags of emoji in many languages.
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
)


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in ``folder``, fetched once.

    Raises:
        RuntimeError: when npm is missing or cannot fetch it, or the archive is not the one that was pinned.
    """
    archive = folder / package.archive
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spec = f"{package.name}@{package.version}"
        try:
            subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise RuntimeError("the data comes from npm packages: install npm (Node.js) first") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm could not fetch {spec}; see above") from error
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise RuntimeError(f"{archive} is not {package.name} {package.version} as it was pinned; remove the file")
    return archive


@cache
def read(archive: Path, member: str) -> Any:
    """A JSON file of a package."""
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
        file = tar.extractfile(f"package/{member}")
        if file is None:
            raise RuntimeError(f"{archive.name} holds no {member}")
        return json.load(file)
