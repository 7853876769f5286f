#!/usr/bin/env bash
# Makes .venv beside this file, with everything that Positron Mini needs. To be sourced:
#
#   source setup.sh                           then: "$POSITRON_BIN/positron" --help
#   POSITRON_EXTRAS=dev; source setup.sh      with the test tools (also web, export, track; comma-separated)
#   POSITRON_PYTHON=python3.12                chooses the interpreter
#
# A second call takes a fraction of a second and works offline. What was interrupted is finished, what is broken is made again.
# Written for bash 3.2, which macOS has. Sets POSITRON_BIN and nothing else.

if [ "${BASH_SOURCE[0]:-}" != "$0" ]; then
  # The work happens in a process of its own: options, traps, variables and folder of the caller stay as they are.
  POSITRON_BIN="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" && pwd -P)" || return 1
  if POSITRON_EXTRAS="${POSITRON_EXTRAS:-}" POSITRON_PYTHON="${POSITRON_PYTHON:-}" bash "$POSITRON_BIN/setup.sh"; then
    POSITRON_BIN="$POSITRON_BIN/.venv/bin"
    return 0
  fi
  unset POSITRON_BIN
  return 1
fi

set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)"
cd -- "$root"
venv="$root/.venv"
py="$venv/bin/python"
stamp="$venv/setup.stamp" # "KEY EXTRAS", written last
log="$venv/setup.log"
pip_install=("$py" -I -m pip install -c constraints.txt)
system="$(uname -s)"
wanted_extras=""
installed_extras=""
python=""
python_version=""
torch_pin=""

# Settings of the person that would make pip install somewhere else, or make Python see other packages.
unset PYTHONHOME PYTHONPATH __PYVENV_LAUNCHER__ PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 1
}

# --- programs for Python ---------------------------------------------------------------------------------------------------------

# "3 12 arm64 complete" of an interpreter; also runs under Python 2, whose version must be named too.
# shellcheck disable=SC2016
PROBE='import os, sys
try:
    import ensurepip, venv
    complete = "complete"
except ImportError:
    complete = "without-venv"
print("%d %d %s %s" % (sys.version_info[0], sys.version_info[1], os.uname()[4], complete))'

# Waits for the lock on descriptor 9. The lock belongs to the open file, so the shell (and a pip that outlives it) goes on holding it,
# and it ends with them, however they end: no stale lock can be left behind.
LOCK='import errno, fcntl, sys
try:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except EnvironmentError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        sys.stderr.write("another set-up is at work in this folder; waiting for it\n")
        fcntl.flock(9, fcntl.LOCK_EX)
except EnvironmentError:
    pass  # a file system without locks'

# The version of a virtual environment that is one; sys.prefix tells whether pip would install into it.
VENV_VERSION='import sys
sys.exit(1) if sys.prefix == sys.base_prefix else print("%d.%d" % sys.version_info[:2])'

# The version, if all that the program needs can be found.
CHECK="$VENV_VERSION"'
from importlib.util import find_spec
for name in "pip setuptools torch numpy sentencepiece safetensors tokenizers tyro rich positron_mini".split():
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(1)'

# Makes pip install again what is not whole: the interrupted (RECORD is written last; what is replaced is renamed to ~name), and
# whatever has lost a file or a part of one since.
TIDY='import csv, os, shutil, sysconfig
site = sysconfig.get_paths()["purelib"]
def is_whole(info):
    with open(os.path.join(info, "RECORD"), encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if not row[0].startswith("..") and not row[0].endswith(".pyc")]
    return all(os.path.getsize(os.path.join(site, name)) == int(size or -1) or not size for name, _, size in rows)
for name in os.listdir(site):
    path = os.path.join(site, name)
    try:
        keep = not name.startswith("~") and (not name.endswith(".dist-info") or is_whole(path))
    except (OSError, ValueError):
        keep = False
    if not keep:
        print("not whole, to be installed again:", path)
        shutil.rmtree(path, ignore_errors=True)'

# Gives the commands of a moved folder their new path. pip knows how to spell a first line with spaces in it.
RELOCATE='import os, sys
from importlib.metadata import entry_points
from pip._vendor.distlib.scripts import ScriptMaker
venv = sys.argv[1]
config = os.path.join(venv, "pyvenv.cfg")
with open(config, encoding="utf-8") as file:
    old = "".join(line.partition(" -m venv ")[2].strip() for line in file if line.startswith("command"))
if os.path.isabs(old) and old != venv:
    maker = ScriptMaker(None, os.path.join(venv, "bin"))
    maker.clobber, maker.set_mode, maker.variants = True, True, {""}
    for entry in entry_points(group="console_scripts"):
        maker.make(entry.name + " = " + entry.value)
    activate = [os.path.join(venv, "bin", name) for name in os.listdir(os.path.join(venv, "bin")) if name.startswith("activate")]
    for path in [*activate, config]:
        with open(path, "rb") as file:
            content = file.read()
        with open(path, "wb") as file:
            file.write(content.replace(os.fsencode(old), os.fsencode(venv)))'

TORCH_VERSION='from importlib.metadata import version
print(version("torch").partition("+")[0])'

# --- is there anything to do? ----------------------------------------------------------------------------------------------------

read_extras() { # -> wanted_extras: sorted, without repeats, joined by commas
  case "${POSITRON_EXTRAS:-}" in
    *[!a-z,\ ]*) fail "POSITRON_EXTRAS=$POSITRON_EXTRAS: not a list of extras" "POSITRON_EXTRAS=dev" ;;
  esac
  wanted_extras="$(join_extras "${POSITRON_EXTRAS:-}")"
}

join_extras() { printf '%s\n' "$1" | tr ',' '\n' | tr ' ' '\n' | sort -u | { grep . || true; } | tr '\n' ',' | sed 's/,$//'; }

key_for() { # version of Python -> hash of everything that decides what is installed where
  { cat pyproject.toml constraints.txt && printf '%s\n' "$1" "$root"; } |
    { sha256sum 2>/dev/null || shasum -a 256 2>/dev/null || cksum; } | cut -d ' ' -f 1
}

is_ready() { # true when the stamp fits and the environment works
  local version key="" extra
  [ -f "$stamp" ] && [ -x "$venv/bin/positron" ] || return 1
  version="$("$py" -I -c "$CHECK" 2>/dev/null)" || return 1
  fits_choice "$version" || return 1
  read -r key installed_extras <"$stamp" || return 1
  [ "$key" = "$(key_for "$version")" ] || return 1
  for extra in $(printf '%s' "$wanted_extras" | tr ',' ' '); do
    case ",$installed_extras," in *",$extra,"*) ;; *) return 1 ;; esac
  done
}

fits_choice() { # version -> true unless POSITRON_PYTHON names another one
  [ -z "${POSITRON_PYTHON:-}" ] && return 0
  local major minor rest
  read -r major minor rest <<<"$(probe "$POSITRON_PYTHON")"
  [ "$1" = "${major:-}.${minor:-}" ]
}

# --- the computer and its Python -------------------------------------------------------------------------------------------------

is_apple_silicon() { [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" = 1 ]; }

check_computer() {
  local version
  case "$system" in
    Darwin)
      if [ "$(uname -m)" != arm64 ] && ! is_apple_silicon; then
        fail "torch $torch_pin has no build for Macs with an Intel processor" "use a Mac with Apple Silicon, or a Linux computer"
      fi
      version="$(sw_vers -productVersion 2>/dev/null || echo 14)"
      if [ "${version%%.*}" -lt 14 ]; then
        fail "torch $torch_pin needs macOS 14 or newer, and this Mac has macOS $version" "System Settings > General > Software Update, then the same command"
      fi
      ;;
    MINGW* | MSYS* | CYGWIN*) fail "the set-up runs on Linux and macOS, not on Windows itself" "wsl --install, then the same command inside WSL" ;;
  esac
}

probe() { # name or path of an interpreter -> what PROBE prints, nothing when there is no working one
  local path
  path="$(command -v -- "$1" 2>/dev/null)" || return 0
  # Without the developer tools, macOS answers /usr/bin/python3 with a window that offers to install them.
  case "$system $path" in "Darwin /usr/bin/"*) xcode-select -p >/dev/null 2>&1 || return 0 ;; esac
  "$path" -I -c "$PROBE" 2>/dev/null </dev/null || true
}

find_python() { # -> python, python_version; or one sentence and the way out
  local candidate major minor machine complete seen="" reason="" hint
  hint="$(install_hint)"
  if [ -n "${POSITRON_PYTHON:-}" ]; then
    set -- "$POSITRON_PYTHON"
  else
    set -- python3.13 python3.12 python3.11 python3.14 python3 python "$py"
  fi
  for candidate in "$@"; do
    read -r major minor machine complete <<<"$(probe "$candidate")"
    [ -n "$major" ] || continue
    if [ "$major" -ne 3 ] || [ "$minor" -lt 11 ] || [ "$minor" -gt 14 ]; then
      seen="${seen:-Python $major.$minor ($(command -v -- "$candidate"))}"
    elif [ "$system" = Darwin ] && [ "$machine" != arm64 ]; then
      reason="${reason:-$(command -v -- "$candidate") is built for Intel processors, and torch $torch_pin needs one for Apple Silicon}"
    elif [ "$complete" != complete ]; then
      reason="${reason:-Python $major.$minor ($(command -v -- "$candidate")) cannot make virtual environments}"
      hint="sudo apt install python$major.$minor-venv   (the package that Debian and Ubuntu leave out), then the same command"
    else
      python="$(command -v -- "$candidate")"
      python_version="$major.$minor"
      return 0
    fi
  done
  [ -z "$reason" ] || fail "$reason" "$hint"
  [ -z "$seen" ] || fail "Positron Mini needs Python 3.11 to 3.14, and this computer offers only $seen" "$hint"
  [ -z "${POSITRON_PYTHON:-}" ] || fail "Positron Mini needs Python 3.11 to 3.14, and POSITRON_PYTHON=$POSITRON_PYTHON does not work" "$hint"
  fail "Positron Mini needs Python 3.11 to 3.14, and this computer offers none" "$hint"
}

install_hint() {
  local other="or POSITRON_PYTHON=/path/to/python3.12"
  if [ "$system" = Darwin ]; then
    echo "brew install python@3.13   (without Homebrew: the macOS installer on Python's download page), then the same command"
  elif command -v apt-get >/dev/null 2>&1; then
    echo "sudo apt install python3.11 python3.11-venv   ($other), then the same command"
  elif command -v dnf >/dev/null 2>&1; then
    echo "sudo dnf install python3.12   ($other), then the same command"
  else
    echo "install Python 3.12 with the package manager ($other), then the same command"
  fi
}

# --- the work --------------------------------------------------------------------------------------------------------------------

attempt() { # command... -> its exit status; what it says goes to the log
  local line="$*"
  line=${line%%$'\n'*}
  printf '\n$ %s\n' "$line" >>"$log"
  "$@" </dev/null >>"$log" 2>&1
}

run() { # what, command...
  local what="$1"
  shift
  attempt "$@" && return 0
  say "error: $what failed; the end of .venv/setup.log:"
  tail -n 12 "$log" | sed 's/^/  | /' >&2
  say "  hint: $(hint_from_log)"
  exit 1
}

hint_from_log() {
  local end
  end="$(tail -n 40 "$log")"
  case "$end" in
    *"No space left"* | *"Disk quota"*) echo "free about 3 GB of disk space, then the same command: it goes on where it stopped" ;;
    *"name resolution"* | *"NewConnectionError"* | *"nodename nor servname"* | *"ProxyError"* | *"timed out"* | *"Max retries"* | *"Connection "*)
      echo "check the network (or set PIP_FIND_LINKS to a folder with the wheels), then the same command: it goes on where it stopped" ;;
    *"No matching distribution"*) echo "POSITRON_PYTHON=python3.12 with the same command: not every package has a build for this Python and system" ;;
    *"Permission denied"*) echo "check that you may write to $root, then the same command" ;;
    *) echo "rm -rf .venv in $root, then the same command" ;;
  esac
}

prepare_venv() {
  local version
  if [ -e "$venv" ] || [ -L "$venv" ]; then
    version="$("$py" -I -c "$VENV_VERSION" 2>/dev/null)" || version=""
    case "$version" in 3.11 | 3.12 | 3.13 | 3.14) fits_choice "$version" || version="" ;; *) version="" ;; esac
    if [ -n "$version" ]; then
      : >"$log"
      attempt "$py" -I -c "$TIDY" || true
      attempt "$py" -I -m pip --version || repair_pip || version=""
    fi
    if [ -n "$version" ]; then
      attempt "$py" -I -c "$RELOCATE" "$venv" || true
      python_version="$version"
      return 0
    fi
    say "  .venv does not work here (interrupted, or its Python is gone or another one): making it again"
    rm -rf "$venv" || fail "$venv cannot be removed" "check that you may write to $root"
    installed_extras=""
  fi
  mkdir "$venv" 2>/dev/null || fail "$venv cannot be made" "check that you may write to $root"
  run "making .venv with $python" "$python" -I -m venv "$venv"
}

repair_pip() { attempt "$py" -I -m ensurepip --upgrade --default-pip && attempt "$py" -I -m pip --version; }

has_nvidia() { nvidia-smi -L 2>/dev/null | grep -q GPU; }

install_torch() {
  local torch="torch==$torch_pin"
  [ "$("$py" -I -c "$TORCH_VERSION" 2>/dev/null || true)" != "$torch_pin" ] || return 0
  if attempt "$py" -I -m pip install --no-index --no-deps "$torch"; then
    say "  torch $torch_pin: from this computer's own wheels"
  elif [ "$system" = Linux ] && ! has_nvidia; then
    # The default build for Linux brings gigabytes of CUDA libraries, of no use without an NVIDIA GPU.
    say "  torch $torch_pin: the build for processors, about 200 MB"
    run "installing torch" "$py" -I -m pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
  else
    say "  torch $torch_pin: $([ "$system" = Linux ] && echo "with CUDA, about 3 GB" || echo "about 110 MB")"
    run "installing torch" "${pip_install[@]}" "$torch"
  fi
}

install_rest() { # extras -> the package itself, editable, and what it needs
  say "  the other packages${1:+ with $1}"
  # setuptools first: an isolated build would fetch an unpinned one, and a moved folder could not be repaired offline.
  run "installing setuptools" "${pip_install[@]}" setuptools
  run "installing the packages" "${pip_install[@]}" --no-build-isolation -e ".${1:+[$1]}"
}

set_up() {
  local extras
  torch_pin="$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' constraints.txt)"
  check_computer
  find_python
  exec 9<"$root/setup.sh"
  "$python" -I -c "$LOCK"
  if is_ready; then return 0; fi # the one that was waited for did it
  if [ -f "$stamp" ]; then read -r _ installed_extras <"$stamp" || true; fi
  if [ -d "$venv" ]; then
    say "Checking .venv: seconds, or 1 to 3 minutes where packages are missing"
  else
    say "Setting up .venv, once: 1 to 3 minutes on a fast line, 1 to 2 GB of disk space"
  fi
  rm -f "$stamp"
  prepare_venv
  install_torch
  extras="$(join_extras "$installed_extras,$wanted_extras")"
  install_rest "$extras"
  run "the check of what was installed" "$py" -I -c "$CHECK"
  printf '%s %s\n' "$(key_for "$python_version")" "$extras" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "  done in $SECONDS s, with Python $python_version; everything is in .venv"
}

read_extras
is_ready || set_up
