# Sourced by the scripts: makes .venv from the lock file, and says clearly what is missing.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${ANTECHAMBER_VENV:-$root/.venv}
python=$venv/bin/python

fail() { printf 'antechamber: %s\n' "$1" >&2; exit 69; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  fail 'needs Python 3.11, 3.12 or 3.13 (Debian, Ubuntu: apt install python3 python3-venv)'
}

setup() {
  local stamp=$venv/.antechamber-lock
  if [ -x "$python" ] && { echo "$root" && cat "$root/requirements.lock"; } | cmp -s - "$stamp"; then return; fi
  [ ! -e "$venv" ] || [ -O "$venv" ] || [ "$(id -u)" = 0 ] ||
    fail "$venv is another user's: name a place of your own in ANTECHAMBER_VENV"
  local base
  base=$(find_python)
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    fail 'needs the venv module (Debian, Ubuntu: apt install python3-venv)'
  printf 'antechamber: installing the locked dependencies into %s ...\n' "${venv#"$root"/}" >&2
  rm -rf "$venv"
  "$base" -m venv "$venv"
  "$python" -m pip --disable-pip-version-check --quiet install --require-hashes --only-binary :all: -r "$root/requirements.lock" ||
    fail 'the locked dependencies did not install: is the package index reachable?'
  "$python" -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation -e "$root"
  { echo "$root" && cat "$root/requirements.lock"; } >"$stamp"
}
