"""Apache Kafka in KRaft mode, one node, from its Maven artifacts: no Docker, no ZooKeeper."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.certificate import self_signed
from tests.servers.install import ATTEMPTS, Missing, cache_folder, command, exclusive, program
from tests.servers.process import Server, free_port

USER, PASSWORD = "streamapp", "correct-horse"
POM = Path(__file__).with_name("pom.xml")
JAVA_OTHERWISE = (
    "Install Java 17 or newer and Maven (Debian: default-jre-headless maven; macOS: brew install openjdk maven)."
)

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={keystore}
listener.name.secure.sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  user_{user}="{password}";
log.dirs={logs}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
"""


def version() -> str:
    """The broker version that the pom pins."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", POM.read_text())
    assert found, "the pom pins no broker version"
    return found[1]


def install() -> Path:
    """Folder with the broker's jars, fetched from Maven Central once per user and version."""
    java()
    folder = cache_folder() / f"kafka-{version()}"
    with exclusive("kafka"):
        if folder.exists():
            return folder
        maven = program("mvn", packages=["maven", "default-jre-headless"], otherwise=JAVA_OTHERWISE)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
            jars = Path(work) / "jars"
            shutil.copy(POM, Path(work) / "pom.xml")
            fetch: list[str | Path] = [maven, "-q", "-B", "-f", Path(work) / "pom.xml"]
            fetch += ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    command(fetch, what="Fetching Kafka from Maven Central")
                    break
                except Missing:
                    if attempt == ATTEMPTS:
                        raise
            # Renamed into place whole: a run cut off in the middle leaves no half installation behind.
            jars.rename(folder)
    return folder


def java() -> Path:
    """A Java runtime of version 17 or newer, JAVA_HOME first."""
    home = os.environ.get("JAVA_HOME")
    own = Path(home) / "bin" / "java" if home else None
    found = own if own and own.exists() else None
    found = found or program("java", packages=["default-jre-headless"], otherwise=JAVA_OTHERWISE)
    said = command([found, "-version"], what="java -version", within=60)
    major = re.search(r'version "(\d+)', said)
    if not major or int(major[1]) < 17:
        raise Missing(f"{found} is too old ({said.splitlines()[0]}). {JAVA_OTHERWISE}")
    return found


class Kafka(Server):
    """One broker on ``127.0.0.1``; topics are never created by themselves."""

    name = "kafka"

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._controller = free_port()
        self._secure = free_port()
        self._java: Path | None = None
        self._jars: Path | None = None

    @property
    def bootstrap(self) -> str:
        """``host:port`` as Kafka clients take it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The broker as ``STREAMAPP_BROKER`` takes it."""
        return f"kafka://{self.bootstrap}"

    @property
    def secure(self) -> dict[str, str]:
        """The environment that reaches the same broker over TLS, with a user and a password."""
        return {
            "STREAMAPP_BROKER": f"kafka://localhost:{self._secure}",
            "STREAMAPP_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "STREAMAPP_KAFKA_SASL_MECHANISM": "PLAIN",
            "STREAMAPP_KAFKA_USERNAME": USER,
            "STREAMAPP_KAFKA_PASSWORD": PASSWORD,
            "STREAMAPP_KAFKA_CA_FILE": str(self.folder / "ca.pem"),
        }

    def tool(self, main: str, *arguments: str, within: float = 120) -> str:
        """Run one of Kafka's own tools by its main class; what it printed."""
        return command([*self._jvm("-Xmx128m"), main, *arguments], what=main, within=within)

    def _jvm(self, *options: str) -> list[str | Path]:
        self._java = self._java or java()
        self._jars = self._jars or install()
        return [self._java, *options, "-cp", f"{self._jars}/*"]

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _prepare(self) -> None:
        keystore = self.folder / "broker.pem"
        key, certificate = self_signed("localhost", "127.0.0.1")
        keystore.write_bytes(key + certificate)
        (self.folder / "ca.pem").write_bytes(certificate)
        values = {
            "port": self.port,
            "controller": self._controller,
            "secure": self._secure,
            "logs": self.folder / "logs",
            "keystore": keystore,
            "user": USER,
            "password": PASSWORD,
        }
        self._properties.write_text(PROPERTIES.format(**values))
        cluster = self.tool("kafka.tools.StorageTool", "random-uuid").strip().splitlines()[-1]
        self.tool("kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(self._properties))

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return [*self._jvm("-Xms128m", "-Xmx512m"), "kafka.Kafka", self._properties], {}
