"""Every setting of the service, read once from the environment (``STREAMAPP_*``) or a TOML file.

Loud on purpose: an unknown or malformed ``STREAMAPP_*`` variable stops the start with a sentence. The environment goes
before the file that ``STREAMAPP_CONFIG`` names (or ``./streamapp.toml``), and that before the defaults: one process.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from streamapp.errors import ConfigError

PREFIX = "STREAMAPP_"
#: Variables that steer the test set-up or name the file, not settings of the service.
NOT_SETTINGS = frozenset({"STREAMAPP_CONFIG", "STREAMAPP_TESTS_STRICT", "STREAMAPP_ROLE"})

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def default_worker_id() -> str:
    """Host name and four random hex digits: unique among live processes, readable in a status page."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "worker"
    return f"{host[:60]}-{secrets.token_hex(2)}"


class Settings(BaseSettings):
    """The frozen settings tree; field names are the ``STREAMAPP_*`` names in lower case."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    # Where things are.
    broker: str = "embedded://"
    database: str = ""
    storage: str = ""
    data_dir: Path = Path("data")
    s3_endpoint: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: str | None = None

    # Who this process is and what it serves.
    app_id: str = "gpu_worker_group"
    worker_id: str = Field(default_factory=default_worker_id)
    families: Annotated[tuple[str, ...], NoDecode] = ("sd15",)
    engine: Literal["process", "inline", "fake", "fake-process"] = "process"
    device: str = "cpu"
    engine_threads: Count = 1
    max_batch_rows: Count | None = None
    strict_precision: bool = False

    # Topics (created by `streamapp topics create`, or at start in embedded mode).
    partitions: Count | None = None
    replication: Count = 1
    retention_days: float = Field(7.0, gt=0)
    embedded_max_bytes: Count = 2 * 1024**3

    # Kafka security, handed to the driver as they are.
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_ca_file: Path | None = None
    kafka_compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = "none"

    # Time-outs, in seconds.
    lease: Seconds = 15.0
    lease_renewal: Seconds = 5.0
    session_timeout: Seconds = 10.0
    heartbeat_interval: Seconds = 2.0
    commit_interval: Seconds = 1.0
    drain: Seconds = 30.0
    window: float = Field(0.05, ge=0, le=5)
    status_interval: Seconds = 1.0
    status_keepalive: Seconds = 5.0
    worker_silence: Seconds = 30.0
    engine_start: Seconds = 120.0
    reconcile_interval: Seconds = 30.0

    # Limits.
    lookahead: Count = 20_000
    max_queued: Count = 1_000_000
    spool_bytes: Count = 256 * 1024**2
    keep_days: float = Field(30.0, ge=0)
    max_attempts: Count = 3
    fallback_models: Annotated[tuple[str, ...], NoDecode] = ()
    max_images: int = Field(100, ge=1, le=100)
    max_prompt_chars: Count = 4_000
    max_request_bytes: Count = 1024 * 1024
    max_input_bytes: Count = 10 * 1024**2
    max_input_pixels: Count = 32_000_000
    allow_private_inputs: bool = False
    max_message_bytes: Count = 64 * 1024
    deadline_urgent: Seconds | None = 300.0
    deadline_normal: Seconds | None = None

    # Webhooks.
    webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    webhook_attempts: Count = 10
    webhook_timeout: Seconds = 15.0
    allow_private_callbacks: bool = False

    # Where models are fetched from; mirrors of a site speak its API.
    civitai_url: str = "https://civitai.com"
    civitai_token: SecretStr | None = None
    hub_url: str = "https://huggingface.co"
    hub_token: SecretStr | None = None
    fetch: Literal["off", "registered", "civitai", "hub", "any"] | None = None
    allow_private_sources: bool = False
    models_max_bytes: Count | None = None
    ram_max_bytes: Annotated[int, Field(ge=0)] | None = None
    vram_max_bytes: Count | None = None
    verify: Literal["changed", "always", "never"] = "changed"
    max_upload_bytes: Count = 512 * 1024**2
    ensure: Annotated[tuple[str, ...], NoDecode] = ()
    preload: Annotated[tuple[str, ...], NoDecode] = ("top:1",)

    # Web.
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    operators: Annotated[tuple[str, ...], NoDecode] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator(
        *("families", "api_keys", "operators", "fallback_models", "webhook_secret", "ensure", "preload"), mode="before"
    )
    @classmethod
    def split_commas(cls, value: Any) -> Any:
        """``sd15,flux`` in the environment, a list in TOML."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("fallback_models")
    @classmethod
    def pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """``sd15=pocket,flux=schnell``, each family once."""
        families = [part.partition("=")[0] for part in value]
        if not all(re.fullmatch(r"[^=]+=.+", part) for part in value) or len(set(families)) != len(families):
            raise ValueError("must be FAMILY=MODEL, each family once, separated by commas")
        return value

    @field_validator("preload")
    @classmethod
    def names_or_top(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Names of models, and ``top:N``."""
        if any(part.startswith("top:") and not re.fullmatch(r"top:[1-9][0-9]{0,3}", part) for part in value):
            raise ValueError("must be names of models, or top:N for the N models that were used last")
        return value

    @field_validator("broker")
    @classmethod
    def known_broker(cls, value: str) -> str:
        """Only the two brokers that pass the contract suite."""
        if value != "embedded://" and not re.fullmatch(r"kafka://[^,\s]+(,[^,\s]+)*", value):
            raise ValueError("must be embedded:// or kafka://host:port[,host:port…]")
        return value

    @field_validator("database")
    @classmethod
    def known_database(cls, value: str) -> str:
        """Only the two databases that pass the contract suite."""
        if value and not value.startswith(("sqlite+aiosqlite:///", "mysql+aiomysql://")):
            raise ValueError("must be sqlite+aiosqlite:///PATH or mysql+aiomysql://user:password@host/name")
        return value

    @field_validator("storage")
    @classmethod
    def known_storage(cls, value: str) -> str:
        """Only the two storages that pass the contract suite."""
        if value and not value.startswith(("file:///", "s3://")):
            raise ValueError("must be file:///FOLDER or s3://bucket/prefix")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def standard_secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        """Secrets as Standard Webhooks writes them: ``whsec_`` and 24 to 64 bytes in base64."""
        for secret in value:
            try:
                key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
            except ValueError:
                key = b""
            if not secret.get_secret_value().startswith("whsec_") or not 24 <= len(key) <= 64:
                raise ValueError("must be whsec_ and 24 to 64 bytes in base64; several, separated by commas, rotate")
        return value

    @field_validator("app_id", "worker_id")
    @classmethod
    def plain_word(cls, value: str) -> str:
        """Ids end up in topic names, keys and file names."""
        if not WORD.match(value):
            raise ValueError("must be letters, digits, dots, dashes or underscores, at most 100 of them")
        return value

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Refuse combinations that can only fail later."""
        if self.lease_renewal * 2 > self.lease:
            raise ValueError("lease must be at least twice lease_renewal, else one late renewal loses a running job")
        if self.host not in {"127.0.0.1", "localhost", "::1"} and not self.api_keys:
            raise ValueError(f"host {self.host} is public: set {PREFIX}API_KEYS, or bind to 127.0.0.1")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003, pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003, pydantic passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file."""
        path = Path(os.environ.get(f"{PREFIX}CONFIG", "streamapp.toml"))
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path))

    # Derived values.
    @property
    def embedded(self) -> bool:
        """Whether broker, tables and workers live in this one process."""
        return self.broker == "embedded://"

    @cached_property
    def data_path(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().absolute()

    @property
    def database_url(self) -> str:
        """The database, defaulting to a file in the data folder."""
        return self.database or f"sqlite+aiosqlite:///{self.data_path / 'streamapp.db'}"

    @property
    def common_storage(self) -> bool:
        """Whether every host of a fleet reaches the same storage: then it also carries weights between them."""
        return self.storage.startswith("s3://")

    @property
    def storage_url(self) -> str:
        """The storage, defaulting to a folder in the data folder."""
        return self.storage or f"file://{self.data_path / 'files'}"

    @property
    def log_path(self) -> Path:
        """The embedded broker's log file."""
        return self.data_path / "broker.db"

    def fallback_model(self, family: str) -> str | None:
        """What draws a task of this family when its own model failed for good."""
        return dict(part.split("=", 1) for part in self.fallback_models).get(family)

    @property
    def task_partitions(self) -> int:
        """Partitions of each task topic: the most workers that can share one family."""
        return self.partitions or (4 if self.embedded else 24)


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings once; raise :class:`ConfigError` with a sentence for anything unknown or malformed."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; the known ones are listed in docs/settings.md"
            raise ConfigError(f"{name} is not a setting{hint}", field=name)
    config = os.environ.get(f"{PREFIX}CONFIG")
    if config and not Path(config).is_file():
        raise ConfigError(f"{PREFIX}CONFIG names {config}, which is not a file", field=f"{PREFIX}CONFIG")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(item) for item in error.errors())) from error


def _sentence(item: Any) -> str:
    """One validation error of pydantic as a sentence that names the variable."""
    name = PREFIX + ".".join(str(part) for part in item["loc"]).upper() if item["loc"] else "settings"
    if item["type"] == "extra_forbidden":
        return f"{name} is not a setting"
    given = "" if re.search("password|key|secret", name, re.IGNORECASE) else f" (given: {item['input']!r})"
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{given if item['loc'] else ''}"
