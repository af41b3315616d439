#!/bin/sh
# Makes .venv with exactly what requirements.lock says, or leaves it alone when it is that already.
# Needs Python 3.11 or 3.12, or the network for uv to fetch one. Works from any folder.
set -eu
cd "$(dirname "$0")/.."

want=$(cat requirements.lock setup.cfg | cksum)
stamp=.venv/.installed
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

find_uv() {
    for candidate in "$(command -v uv || true)" "$HOME/.local/bin/uv" .cache/uv/bin/uv; do
        if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# uv in a folder of its own: touches neither the system's Python nor the user's.
private_uv() {
    rm -rf .cache/uv
    python3 -m venv .cache/uv >/dev/null 2>&1 && .cache/uv/bin/python -m pip install --quiet uv
}

if ! uv=$(find_uv); then
    echo "Installing uv, which installs everything else."
    if ! private_uv; then
        # Debian and Ubuntu ship Python without venv.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get -qq update || true
            DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends python3 python3-venv
            private_uv || true
        else
            python3 -m pip install --quiet --user uv 2>/dev/null \
                || python3 -m pip install --quiet --user --break-system-packages uv || true
        fi
    fi
    if ! uv=$(find_uv); then
        echo "uv could not be installed. Install it (https://docs.astral.sh/uv, or: pip install uv, or" >&2
        echo "on Debian and Ubuntu: sudo apt-get install python3-venv) and run this again." >&2
        exit 1
    fi
fi

# Only what is installed from here on counts, whatever environment the caller is in.
unset VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME
attempt() {
    for pause in 2 5 0; do
        "$@" && return 0
        [ "$pause" = 0 ] && break
        echo "Trying again in $pause s, with the system's certificates as well." >&2
        sleep "$pause"
        # Networks that inspect TLS have an authority of their own, which the system knows and uv does not.
        export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
    done
    return 1
}

# uv takes half a minute to give up by default; large wheels on slow lines need longer.
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
if ! .venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    rm -rf .venv
    attempt "$uv" venv --quiet --python '>=3.11,<3.13' .venv
fi
rm -f "$stamp"
echo "Installing the locked packages into .venv (the first time downloads torch, which is large)."
attempt "$uv" pip sync --quiet --python .venv/bin/python requirements.lock
attempt "$uv" pip install --quiet --python .venv/bin/python --no-deps --editable .
"$uv" pip check --quiet --python .venv/bin/python
echo "$want" > "$stamp"
