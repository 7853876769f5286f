"""Turn a text into token files: read twice in parts, never held in memory, by one process per core, resumable at any part.

Read `pipeline` first: the order of the work, and what is cached. `scan` is the first pass, `parts` the work on one part, `workers` the
processes, `unfinished` the folder for finished parts until all are done.
"""

from positron_mini.text.corpus.report import report_lines
from positron_mini.text.prepare.pipeline import Prepared, default_tokenizer_path, prepare_corpus

__all__ = ["Prepared", "default_tokenizer_path", "prepare_corpus", "report_lines"]
