#!/usr/bin/env bash
# From nothing to a model: set-up, data, tokenizer, training, samples. Started again, it goes on.
#   ./bootstrap_tiny_llm.sh [--dataset tinystories|storyworld|PATH] [--config PRESET] [--steps N] [--out_dir DIR] [more flags of train]
set -euo pipefail
export POSITRON_CALLED_FROM="$PWD" # so that the commands it prints work there
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh
exec "$POSITRON_BIN/positron" bootstrap "$@"
