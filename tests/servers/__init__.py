"""Real servers on loopback for tests, benchmarks and chaos runs: Kafka, MariaDB, S3 and Chromium.

``python -m tests.servers install`` fetches what they need; ``python -m tests.servers up`` starts all three
servers and prints the environment with which workers use them. Every class raises
:class:`~tests.servers.install.Missing` with what to do when its program cannot be had on this machine.
"""

from __future__ import annotations

from tests.servers.chromium import Chromium
from tests.servers.install import Missing
from tests.servers.kafka import Kafka
from tests.servers.mariadb import MariaDB
from tests.servers.process import Server
from tests.servers.s3 import S3

__all__ = ["S3", "Chromium", "Kafka", "MariaDB", "Missing", "Server"]
