#!/usr/bin/env bash
# Create .venv and install what avatar_jax needs on this machine. Safe to repeat: the second run is instant.
#
#   ./setup.sh [--dev] [--print]      --dev: also the test and check tools; --print: say what it would install
#   ./setup.sh --parity               .venv-parity: those and the libraries that `make parity` compares with, on CPU
#   DEVICE=cpu|cuda12|tpu             overrides the detected device
#   PYTHON=/path/to/python3           overrides the interpreter (3.11 to 3.14)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv

say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 2; }

# --- which Python -------------------------------------------------------------------------------------------

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || die "PYTHON=$PYTHON is not a working Python 3.11 to 3.14"
    command -v "$PYTHON"; return
  fi
  for candidate in python3 python3.13 python3.12 python3.14 python3.11; do
    if supported "$candidate"; then command -v "$candidate"; return; fi
  done
  die "no Python 3.11 to 3.14 found; install one (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON="
}

# --- what to install -----------------------------------------------------------------------------------------

# requirements.txt is the only list: the JAX line takes the extra that fits the device.
requirements() {
  case $device in
    cpu) sed 's/^jax\[cuda12\]/jax/' requirements.txt ;;
    *) sed "s/^jax\[cuda12\]/jax[$device]/" requirements.txt ;;
  esac
  if [ "$dev" = 1 ]; then cat requirements-dev.txt; fi
  if [ "$parity" = 1 ]; then cat requirements-parity.txt; fi
}

fingerprint() { { echo "$device $("$python" -V)"; requirements; cat constraints.txt; } | cksum; }

size_mb() { # MB to download and MB on disk, as measured on x86-64
  case $device in
    cpu) echo $((380 + 90 * dev + 220 * parity)) $((1400 + 300 * dev + 1100 * parity)) ;;
    cuda12) echo $((3600 + 90 * dev)) $((6300 + 300 * dev)) ;;
    tpu) echo $((600 + 90 * dev)) $((2200 + 300 * dev)) ;;
  esac
}

check_disk() {
  local free_mb need_mb
  read -r _ need_mb < <(size_mb)
  free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
  [ "$free_mb" -ge "$need_mb" ] || die "$need_mb MB of disk are needed here, $free_mb MB are free"
}

# --- the virtual environment ---------------------------------------------------------------------------------

venv_matches() {
  [ -x $venv/bin/python ] && [ "$($venv/bin/python -V 2>/dev/null)" = "$("$python" -V)" ] \
    && $venv/bin/python -m pip --version >/dev/null 2>&1
}

as_root() { # root itself, or sudo where it asks for no password
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Debian and Ubuntu split `ensurepip` off into python3.X-venv: install it when we may, else say so.
make_venv() {
  local version package
  rm -rf $venv
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  package=python$version-venv
  if "$python" -c 'import ensurepip' 2>/dev/null; then "$python" -m venv $venv
  elif "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --without-pip $venv
    "$python" -m pip --python $venv/bin/python install -q pip
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then "$python" -m virtualenv -q -p "$python" $venv
  elif as_root true 2>/dev/null && command -v apt-get >/dev/null; then
    say "installing $package with apt: this Python needs it to create a virtual environment"
    { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y "$package"; } \
      >/dev/null 2>&1 </dev/null || die "apt-get install $package failed"
    "$python" -m venv $venv
  else die "this Python cannot create a virtual environment; run: sudo apt install $package"; fi
}

show_progress() { # one living line on a terminal, silence in a log
  if [ -t 2 ]; then
    awk '/^ *Collecting /{printf "\r\033[K  %d packages: %s", ++n, $2 > "/dev/stderr"}
         /^Installing collected/{printf "\r\033[K  unpacking %d packages", n > "/dev/stderr"}
         END{printf "\r\033[K" > "/dev/stderr"}'
  else cat >/dev/null; fi
}

install_packages() {
  requirements >$venv/requirements.txt
  $venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -r $venv/requirements.txt -c constraints.txt </dev/null 2>&1 | tee "$log" | show_progress \
    || { grep -E '^ *(ERROR|error)' "$log" >&2 || tail -n 15 "$log" >&2; die "the installation failed; full log: $log"; }
}

# --- main ----------------------------------------------------------------------------------------------------

dev=0 dry=0 parity=0
for argument in "$@"; do
  case $argument in
    --dev) dev=1 ;;
    --parity) dev=1 parity=1 venv=.venv-parity DEVICE=cpu ;;
    --print) dry=1 ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

log=$venv/install.log
python=$(find_python)
device=${DEVICE:-$("$python" -I avatar_jax/core/platform.py)}
case $device in cpu | cuda12 | tpu) ;; *) die "DEVICE=$device is none of cpu, cuda12, tpu" ;; esac

read -r download_mb disk_mb < <(size_mb)
plan="$(requirements | grep -c '^[a-z]') packages and what they need: about $download_mb MB to download, $disk_mb MB on disk"
if [ $dry = 1 ]; then
  say "device $device: $plan"
  requirements | grep '^[a-z]'
  exit 0
fi

# An environment with the tools serves the plain runs too.
stamp=$venv/installed
if [ -e $stamp ] && [ -x $venv/bin/python ]; then
  case $(cat $stamp) in
    "$(fingerprint)" | "$(dev=1 && fingerprint)") exit 0 ;;
  esac
fi

say "device $device, $("$python" -V) ($python); installing into $venv"
say "$plan"
check_disk
venv_matches || make_venv
started=$SECONDS
install_packages
fingerprint >$stamp
say "installed in $((SECONDS - started)) s"
