#!/usr/bin/env bash
# Training in chunks of N steps (default 1,000) with you in charge: after each one continue, finish, ask or quit. Started again, it goes on.
#   ./train_incremental.sh [N] [--dataset tinystories|storyworld|PATH] [--config PRESET] [--out_dir DIR] [more flags of train]
set -euo pipefail
export POSITRON_CALLED_FROM="$PWD" # so that the commands it prints work there
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh
exec "$POSITRON_BIN/positron" incremental "$@"
