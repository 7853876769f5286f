"""`python -m positron_mini.text.prepare STAGE FOLDER VOCAB_SIZE THREADS` is a worker of the process that started it."""

import sys
from pathlib import Path

from positron_mini.text.prepare.workers import Job, serve

if __name__ == "__main__":
    stage, folder, vocab_size, threads = sys.argv[1:]
    serve(Job(stage, Path(folder), int(vocab_size), int(threads)))  # type: ignore[arg-type]
