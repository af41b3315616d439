"""P6f: a download that is verified while it arrives, beside curl's of the same."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.engine.figures import Figure, ratios, summary
from streamapp.guarded import GuardedClient
from streamapp.models.download import Downloader, Remote

RATE = 250e6
#: A server of its own process: bytes of a well-formed file of zeros, at a pace.
SERVER = """
import asyncio, json, sys, time
size, rate = int(sys.argv[1]), float(sys.argv[2])
header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
header += b" " * (-len(header) % 8)
head = len(header).to_bytes(8, "little") + header
piece = bytes(1 << 20)

async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    length = len(head) + size
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/octet-stream\\r\\nETag: \\"1\\"\\r\\n"
                 b"Connection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % length + head)
    began, sent = time.perf_counter(), 0
    while sent < size:
        part = piece[: size - sent]
        writer.write(part)
        sent += len(part)
        await writer.drain()
        wait = began + sent / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def download(folder: Path, rounds: int, size: int = 1 << 30) -> Figure:
    """P6f; ``size`` bytes."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(size), str(RATE)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/w.safetensors"
        ours: list[float] = []
        theirs: list[float] = []
        cpu: list[float] = []
        for number in range(rounds):
            if number % 2:
                theirs.append(_curl(url, folder))
            ours.append(_ours(url, folder, cpu))
            if not number % 2:
                theirs.append(_curl(url, folder))
    finally:
        server.kill()
        server.communicate()
    facts = {"CPU seconds per GB": round(min(cpu) / (size / 1e9), 2), "GB": round(size / 1e9, 3)}
    return Figure("P6f", ratios(ours, theirs), rounds, {"ours": summary(ours), "curl": summary(theirs)}, facts)


def _curl(url: str, folder: Path) -> float:
    curl = shutil.which("curl")
    assert curl is not None, "curl is not installed"
    target = folder / "curl.bin"
    began = time.perf_counter()
    subprocess.run([curl, "-s", "-o", str(target), url], check=True)
    taken = time.perf_counter() - began
    target.unlink()
    return taken


def _ours(url: str, folder: Path, cpu: list[float]) -> float:
    async def fetch(target: Path) -> float:
        async with GuardedClient(allow_private=True, timeout=30.0) as client:
            began = time.perf_counter()
            got = await Downloader(client).fetch(Remote(url, "w"), target)
            taken = time.perf_counter() - began
        assert len(got.digest) == hashlib.sha256().digest_size * 2
        return taken

    with tempfile.TemporaryDirectory(dir=folder) as inside:
        before = resource.getrusage(resource.RUSAGE_SELF)
        taken = asyncio.run(fetch(Path(inside) / "w.safetensors"))
        used = resource.getrusage(resource.RUSAGE_SELF)
    cpu.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
    return taken
