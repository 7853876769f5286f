#!/usr/bin/env bash
# Fine-tunes the newest base run on the sample conversations and generated story-world rows, asks three questions before and after.
#   ./sft_quickstart.sh [--base_ckpt RUN] [--rows N] [more flags of sft]
set -euo pipefail
export POSITRON_CALLED_FROM="$PWD" # so that the commands it prints work there
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh
exec "$POSITRON_BIN/positron" quicksft "$@"
