"""``python -m tests.chaos [--seed N] [--tasks N] [--workers N] [--embedded] [--out FILE]``; exit 1 on a violation."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.plan import Mix
from tests.chaos.report import table
from tests.chaos.run import embedded_run, fleet_run


def main() -> int:
    """Run, print, keep the logs of a run that went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="repeats a run's faults")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=6.0, help="tasks per second")
    parser.add_argument("--embedded", action="store_true", help="one process, no servers")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streamapp-chaos-"))
    print(f"seed {given.seed}; logs in {folder}", flush=True)
    span = given.tasks / given.rate
    if given.embedded:
        running = embedded_run(folder, given.seed, given.tasks, span, Mix.alone())
    else:
        running = fleet_run(folder, given.seed, given.tasks, given.workers, span, Mix())
    facts = asyncio.run(running)
    print(table(facts))
    if given.out:
        given.out.write_text(json.dumps(facts, indent=2) + "\n")
    if facts["violations"]:
        print(f"the logs are kept in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
