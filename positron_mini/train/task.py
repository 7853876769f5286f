"""What pretraining and fine-tuning differ in: the model they begin from, their batches, how it is scored, what is written down."""

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
    """One kind of training, of one text or of one set of conversations."""

    @property
    def kind(self) -> str:
        """"pretrain" or "sft", as in run.json."""
        ...

    @property
    def config(self) -> RunConfig:
        """The settings as run.json holds them: nothing that was left out is open any more."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings that were decided."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two commands the same run."""
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
        """Whether the model is scored and observed before the first step too, to compare with the end."""
        ...

    @property
    def points_best(self) -> bool:
        """Whether `best` names the step with the lowest validation loss from the first one on, or once that loss has turned."""
        ...

    def model(self) -> GPT:
        """The model of step 0."""

    def batches(self) -> BatchSource:
        """The rows of every step."""

    def evaluate(self, model: GPT) -> Score:
        """Held-out loss, of all processes together."""

    def observe(self, run: RunFolder, model: GPT, step: int, *, is_end: bool) -> None:
        """Write samples and other measures of a milestone to the run's logs. `is_end`: the run ends at this step."""

    def texts(self, run: RunFolder, step: int, tokens: int, report: StepReport | None) -> dict[str, bytes]:
        """The files of a step's folder beside its weights; `tokens` were read until then."""

    def lines(self, run: RunFolder, trainer: Trainer, plan: Plan) -> list[str]:
        """What a person is told before the first step."""
