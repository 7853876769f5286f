"""A text becomes token files: read twice in parts, never held in memory, by as many processes as there are cores, resumable at any part.

Read `pipeline` first: what is done in which order, and what is kept. `scan` is the first pass, `parts` the work on one part, `workers` who
does it, `unfinished` where finished parts lie until all are there.
"""

from positron_mini.text.corpus.report import report_lines
from positron_mini.text.prepare.pipeline import Prepared, default_tokenizer_path, prepare_corpus

__all__ = ["Prepared", "default_tokenizer_path", "prepare_corpus", "report_lines"]
