"""The contents of a report, computed from one run folder."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.report.advice import Advice, advise
from positron_mini.report.corpus import Corpus, describe_corpus
from positron_mini.report.learned import Claim, SkillLine, claims, skill_lines
from positron_mini.report.reproduce import reproduction
from positron_mini.store.checkpoint import STATE_FILE
from positron_mini.store.run_history import RunHistory, read_run


@dataclass(frozen=True)
class Evolution:
    """A run, its text, what it learned, what to do next, and the commands that reproduce it."""

    record: RunHistory
    corpus: Corpus
    skills: tuple[SkillLine, ...]
    claims: tuple[Claim, ...]
    advice: Advice
    commands: tuple[str, ...]

    @property
    def tok_per_s(self) -> float | None:
        """Median tokens a second over all steps."""
        return statistics.median(row.tok_per_s for row in self.record.reports) if self.record.reports else None

    @property
    def epochs(self) -> float | None:
        """Epochs: how often the training text was read."""
        there = self.corpus.report.get("train_tokens")
        return self.record.reports[-1].tokens / there if there and self.record.reports else None

    @property
    def state_bytes(self) -> int | None:
        """Size of the newest saved training state: raw weights, optimizer, running average."""
        for path in sorted(self.record.path.glob(f"step_*/{STATE_FILE}"), reverse=True):
            with contextlib.suppress(OSError):  # the process that trains the run may remove it meanwhile
                return path.stat().st_size
        return None

    def summary(self) -> dict[str, Any]:
        """The evolution as plain values, for --json."""
        record, newest = self.record, self.record.validations[-1:]
        verdicts = {"improving": self.advice.improving, "stories": self.advice.stories, "fine_tuning": self.advice.fine_tuning}
        return {
            "run": record.name,
            "kind": record.kind,
            "step": record.step,
            "tokens": record.reports[-1].tokens if record.reports else 0,
            "elapsed_s": record.reports[-1].elapsed_s if record.reports else 0.0,
            "tok_per_s": self.tok_per_s,
            "parameters": record.shape.parameters if record.shape else None,
            "val_loss": newest[0].val_loss if newest else None,
            "val_bpb": newest[0].val_bpb if newest else None,
            "references": {line.name: {"loss": line.loss, "bits_per_byte": line.bits_per_byte} for line in self.corpus.references},
            "skills": {
                line.skill: {
                    "accuracy": line.newest.accuracy,
                    "low": line.newest.low,
                    "high": line.newest.high,
                    "above_chance_since": line.above_chance,
                    "above_80_since": line.above_sure,
                }
                for line in self.skills
            },
            "claims": [
                {"area": claim.area, "word": claim.word, "skills": [line.skill for line in claim.evidence]} for claim in self.claims
            ],
            "advice": {
                "headline": self.advice.headline,
                "gain_per_doubling": self.advice.gain_per_doubling,
                "next": self.advice.next_command,
                **{name: {"answer": verdict.answer, "reason": verdict.reason} for name, verdict in verdicts.items()},
            },
            "commands": list(self.commands),
        }


def evolution(path: Path, *, until: int | None = None, cache_dir: Path = Path("data/cache")) -> Evolution:
    """The evolution of the run in `path`, up to step `until`. Errors: RunError, PositronError."""
    record = read_run(path, until=until)
    corpus = describe_corpus(record, cache_dir)
    lines = skill_lines(record.skills)
    advice = advise(record, corpus, lines)
    return Evolution(record, corpus, lines, tuple(claims(lines)), advice, tuple(reproduction(record, corpus.note)))
