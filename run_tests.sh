#!/usr/bin/env bash
# Sets up, then runs ruff, mypy and pytest. With arguments: pytest alone, with them (./run_tests.sh tests/test_model.py -k rope).
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

POSITRON_EXTRAS="${POSITRON_EXTRAS:+$POSITRON_EXTRAS,}dev"
# shellcheck source=setup.sh
source ./setup.sh

# No test may ask the hub, open a window or start threads of its own.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
# Two threads that spin while they wait for a busy core take a hundred times as long as two that sleep.
export OMP_WAIT_POLICY=passive

if [ $# -gt 0 ]; then
  exec "$POSITRON_BIN/python" -m pytest "$@" </dev/null
fi

failed=""
"$POSITRON_BIN/python" -m ruff check . || failed="$failed ruff"
"$POSITRON_BIN/python" -m mypy || failed="$failed mypy"
"$POSITRON_BIN/python" -m pytest -n auto --maxprocesses 4 --dist loadfile </dev/null || failed="$failed pytest"
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
