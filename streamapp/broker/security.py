"""TLS and SASL for Kafka, from the ``kafka_*`` settings, in the forms that aiokafka and Faust take."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Protocol

from faust.auth import SASLCredentials, SSLCredentials
from faust.types.auth import CredentialsT
from pydantic import SecretStr


class SecuritySettings(Protocol):
    """The part of the settings that says how to reach a Kafka that asks who is there."""

    @property
    def kafka_security_protocol(self) -> str:
        """``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``."""

    @property
    def kafka_sasl_mechanism(self) -> str | None:
        """``PLAIN`` or ``SCRAM-SHA-…``."""

    @property
    def kafka_username(self) -> str | None:
        """SASL user."""

    @property
    def kafka_password(self) -> SecretStr | None:
        """SASL password."""

    @property
    def kafka_ca_file(self) -> Path | None:
        """Certificates to trust instead of the system's."""


def _context(settings: SecuritySettings) -> ssl.SSLContext | None:
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    return ssl.create_default_context(cafile=settings.kafka_ca_file)


def _password(settings: SecuritySettings) -> str | None:
    return None if settings.kafka_password is None else settings.kafka_password.get_secret_value()


def client_security(settings: SecuritySettings) -> dict[str, Any]:
    """Keyword arguments for any aiokafka client."""
    options: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
    context = _context(settings)
    if context is not None:
        options["ssl_context"] = context
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism or "PLAIN"
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = _password(settings)
    return options


def faust_credentials(settings: SecuritySettings) -> CredentialsT | None:
    """The ``broker_credentials`` of a Faust application, ``None`` for plain text."""
    context = _context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        return SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism or "PLAIN",
            username=settings.kafka_username,
            password=_password(settings),
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)
