"""What differs between pretraining and fine-tuning: first model, batches, scores, logs, files."""

from __future__ import annotations

from typing import Any, Protocol

from positron_mini.config import RunConfig
from positron_mini.evaluate.bits import Score
from positron_mini.model import GPT
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train.plan import Plan
from positron_mini.train.settings import Settings
from positron_mini.trainer import BatchSource, Trainer


class Task(Protocol):
    """One kind of training, with its text or conversations."""

    @property
    def kind(self) -> str:
        """"pretrain" or "sft", as in run.json."""
        ...

    @property
    def config(self) -> RunConfig:
        """Settings as run.json stores them, with the decided ones filled in."""
        ...

    @property
    def settings(self) -> Settings:
        """Decided settings."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that make two commands the same run."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """More fields of the run's record."""
        ...

    @property
    def momentum_warmup(self) -> int:
        """Updates over which Muon's momentum rises."""
        ...

    @property
    def scores_first(self) -> bool:
        """Whether to score and observe the model before the first step too, for comparison with the end."""
        ...

    @property
    def points_best(self) -> bool:
        """Whether `best` names the step with the lowest validation loss from the first one on, or only once that loss has turned."""
        ...

    def model(self) -> GPT:
        """Model of step 0."""

    def batches(self) -> BatchSource:
        """Rows of every step."""

    def evaluate(self, model: GPT) -> Score:
        """Held-out loss, summed over all processes."""

    def observe(self, run: RunFolder, model: GPT, step: int, *, is_end: bool) -> None:
        """Write samples and other milestone scores to the run's logs. `is_end`: the run ends at this step."""

    def texts(self, run: RunFolder, step: int, tokens: int, report: StepReport | None) -> dict[str, bytes]:
        """Files of a step's folder beside its weights; `tokens` have been read so far."""

    def lines(self, run: RunFolder, trainer: Trainer, plan: Plan) -> list[str]:
        """Lines for a person before the first step."""
