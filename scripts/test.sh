#!/bin/sh
# Installs the real servers where that is possible, then runs pytest; arguments go to pytest.
# With STREAMAPP_TESTS_STRICT=1 a missing server is a failure, else a loud skip.
set -eu
cd "$(dirname "$0")/.."
scripts/make-venv.sh
.venv/bin/python -m tests.servers install || true
exec .venv/bin/python -m pytest "$@"
