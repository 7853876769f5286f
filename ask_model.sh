#!/usr/bin/env bash
# Ask the newest model: fine-tuned if there is one, else the base model, which continues your line as a story.
#   ./ask_model.sh "Tell me about gravity"     prints the answer only; without a question a conversation begins
#   ./ask_model.sh [QUESTION] [--ckpt C] [--max_tokens 30] [--temperature 0.3] [--top_p 0.8] [more flags of chat]
set -euo pipefail
export POSITRON_CALLED_FROM="$PWD" # so that the commands it prints work there
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh
exec "$POSITRON_BIN/positron" chat "$@"
