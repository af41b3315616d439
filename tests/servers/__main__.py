"""``python -m tests.servers install|up``: fetch the real servers, or run them for a person to try things on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.servers import S3, Kafka, MariaDB, Missing, chromium, kafka, mariadb, s3

INSTALLERS: dict[str, Callable[[], Path]] = {
    "kafka": kafka.install,
    "mariadb": mariadb.install,
    "s3": s3.install,
    "chromium": chromium.install,
}


def install(names: list[str]) -> int:
    """Install what can be installed and say what is missing; the number of missing programs."""
    missing = 0
    for name in names or list(INSTALLERS):
        try:
            print(f"{name}: {INSTALLERS[name]()}", flush=True)
        except Missing as error:
            missing += 1
            print(f"{name}: MISSING. Tests that need it will be skipped. {error}", flush=True)
    return missing


def up() -> int:
    """Run Kafka, MariaDB and S3 until interrupted, after printing the environment that points at them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(Kafka())
            database = stack.enter_context(MariaDB())
            storage = stack.enter_context(S3())
        except Missing as error:
            print(error, file=sys.stderr)
            return 1
        values = {"STREAMAPP_BROKER": broker.url, "STREAMAPP_DATABASE": database.url}
        for key, value in {**values, **storage.environment(storage.create_bucket("pictures"))}.items():
            print(f"export {key}='{value}'", flush=True)
        print("# Running until Ctrl-C; everything is removed then.", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


def main(arguments: list[str]) -> int:
    """Entry point; exit code 0 when everything asked for is there."""
    match arguments:
        case ["install", *names] if set(names) <= set(INSTALLERS):
            return min(install(names), 1)
        case ["up"]:
            return up()
    print(f"usage: python -m tests.servers install [{' '.join(INSTALLERS)}] | up", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
