"""What storing a model in fewer bits costs: bits per byte of a text, measured by llama.cpp itself on GGUF files of each type.

    python benchmarks/interop_quality.py --ckpt runs/NAME/latest --text FILE [--tokens 20000] [--dtypes f32,q8_0,q4_0] [--json OUT.json]

llama.cpp's server reports probabilities of written tokens only, so every document is written token by token under a grammar that allows
nothing else. The definition is that of `positron eval`: all tokens after bos, eos included, over the UTF-8 bytes of the text. Left out are
documents longer than the context, and those with bytes of unfinished characters, for which the server reports no probability.
The column "ours" is the same sum by this package, with the weights as they are in the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from positron_mini import files
from positron_mini.evaluate.bits import score_documents
from positron_mini.export.model_files import Dtype, export_gguf
from positron_mini.store.checkpoint import Checkpoint, load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.text.corpus.files import read_documents
from positron_mini.text.corpus.reading import ReadStats
from positron_mini.text.tokenizer.model_file import FIRST_BYTE, FIRST_NORMAL

TARGETS = {"q8_0": 0.5, "q4_0": 6.0}  # percent above f32, at most


@dataclass(frozen=True)
class Documents:
    """Documents as ids (bos first, eos last), the UTF-8 bytes of their texts, and how many were left out."""

    ids: list[list[int]]
    bytes: list[int]
    left_out: int

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(len(document) - 1 for document in self.ids)


def chosen_documents(checkpoint: Checkpoint, text: Path, most_tokens: int) -> Documents:
    """The first documents of a text that can be measured, up to `most_tokens`."""
    ids: list[list[int]] = []
    sizes: list[int] = []
    left_out = count = 0
    for document in read_documents(text, stats=ReadStats()):
        encoded = checkpoint.tokenizer.encode_document(document)
        parts = any(FIRST_BYTE + 0x80 <= token < FIRST_NORMAL for token in encoded)
        if parts or len(encoded) > checkpoint.config.context_len:
            left_out += 1
            continue
        if ids and count + len(encoded) - 1 > most_tokens:
            break
        ids.append(encoded)
        sizes.append(len(document.strip("\r\n").encode()))
        count += len(encoded) - 1
    return Documents(ids, sizes, left_out)


class LlamaCpp:
    """A GGUF file behind llama.cpp's server on a loopback port."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.port, params.verbosity, params.warmup = context, 1, 0, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)

    def nats(self, document: Sequence[int], never: Sequence[int]) -> float:
        """-ln p of a document's tokens after the first. `never` are other ids at which llama.cpp would end a text."""
        body = list(document[1:])
        answer = self._ask(
            prompt=[document[0]],
            n_predict=len(body),
            temperature=0,
            n_probs=1,
            cache_prompt=False,
            grammar="root ::= " + " ".join(f"<[{token}]>" for token in body[:-1]),  # after it only the end is left
            logit_bias=[[token, False] for token in never],
        )
        rows = answer["completion_probabilities"]
        assert [row["id"] for row in rows] == body, "llama.cpp did not write the document it was told to"
        return -math.fsum(row["logprob"] for row in rows)

    def _ask(self, **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.server.listening_address + "/completion", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)


def measured(checkpoint: Checkpoint, documents: Documents, dtype: Dtype, threads: int) -> dict[str, Any]:
    """Bits per byte of the documents with weights of a type, through llama.cpp; the size of the file; tokens a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_gguf(checkpoint, Path(folder), dtype, say=lambda text: print(text, file=sys.stderr)).path
        llama = LlamaCpp(path, checkpoint.config.context_len, threads)
        never = sorted(checkpoint.tokenizer.control_ids - {2})
        began = time.perf_counter()
        nats = 0.0
        for done, document in enumerate(documents.ids, 1):
            nats += llama.nats(document, never)
            print(f"\r{dtype}: {done:,} of {len(documents.ids):,} documents", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        seconds = time.perf_counter() - began
        del llama
        return {
            "dtype": dtype,
            "file_bytes": path.stat().st_size,
            "bits_per_byte": nats / math.log(2) / sum(documents.bytes),
            "tok_per_s": documents.tokens / seconds,
        }


def table(rows: Sequence[dict[str, Any]], ours: float) -> str:
    """The rows in Markdown, against f32 and against the target."""
    base = next((row["bits_per_byte"] for row in rows if row["dtype"] == "f32"), rows[0]["bits_per_byte"])
    lines = ["| type | MB | bits per byte | above f32 | target | |", "|---|---|---|---|---|---|", f"| ours (fp32) | | {ours:.4f} | | | |"]
    for row in rows:
        row["above_f32_percent"] = 100 * (row["bits_per_byte"] / base - 1)
        target = TARGETS.get(row["dtype"])
        row["within_target"] = None if target is None else row["above_f32_percent"] <= target
        verdict = " | " if target is None else f"{target:g} % | {'met' if row['within_target'] else 'MISSED'}"
        change = f"{row['above_f32_percent']:+.2f} %"
        lines.append(f"| {row['dtype']} | {row['file_bytes'] / 1e6:.1f} | {row['bits_per_byte']:.4f} | {change} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint: a step folder, a run folder or runs/x/latest")
    parser.add_argument("--text", required=True, type=Path, help="a text file, read like a training text")
    parser.add_argument("--tokens", type=int, default=20_000, help="measure about so many tokens (default 20,000)")
    parser.add_argument("--dtypes", default="f32,q8_0,q4_0", help="types to compare (default f32,q8_0,q4_0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of llama.cpp (default 1)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    flags = parser.parse_args()
    checkpoint = find_checkpoint(flags.ckpt)
    documents = chosen_documents(checkpoint, flags.text, flags.tokens)
    if not documents.ids:
        raise SystemExit(f"{flags.text}: no document fits the context of {checkpoint.config.context_len} tokens")
    ours = score_documents(load_model(checkpoint), documents.ids, documents.bytes).bits_per_byte
    rows = [measured(checkpoint, documents, dtype, flags.threads) for dtype in flags.dtypes.split(",")]
    print(table(rows, ours))
    print(
        f"\n{len(documents.ids):,} documents, {documents.tokens:,} tokens, {sum(documents.bytes):,} bytes; {documents.left_out:,} left out"
    )
    record = {
        "checkpoint": flags.ckpt,
        "parameters": checkpoint.config.parameters,
        "text": flags.text.name,
        "documents": len(documents.ids),
        "left_out": documents.left_out,
        "tokens": documents.tokens,
        "bytes": sum(documents.bytes),
        "ours_bits_per_byte": ours,
        "rows": rows,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    print(json.dumps(record))
    if flags.json:
        files.write_json(flags.json, record)
    return 0 if all(row["within_target"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
