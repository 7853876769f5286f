"""A run from command to finish: find it, decide every setting, plan its steps, build, record; for pretraining and fine-tuning.

`train` is for Python programs; the commands open a run themselves (`open_run`).
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from positron_mini.config import TrainConfig, from_names
from positron_mini.errors import command

if TYPE_CHECKING:
    from positron_mini.store.run_logs import StepReport
    from positron_mini.train.session import Session

log = logging.getLogger(__name__)


def train(config: str | None = None, **settings: Any) -> Generator[StepReport, None, None]:
    """Start or continue a run, as `positron train` does; yield a report per finished step: loss in nats per token, tokens per second, ...

    `config` names a preset (TinyGPT unless the run says otherwise); `settings` are the other fields of TrainConfig, such as
    dataset_path, max_steps, budget, lr, seed, out_dir. Everything is checked, and the text prepared, before this returns; the run folder
    is made at the first step. Checkpoints are saved as by the command, also when the generator is closed or interrupted by Ctrl-C: the same
    call then continues. What the command would print is logged at level INFO. Several processes need the command. Errors: UsageError
    for an unknown setting or an impossible value; RunError for a folder that holds another run; every other PositronError.
    """
    from positron_mini.train.open_run import open_session

    given = settings if config is None else {"config": config, **settings}
    asked = from_names(TrainConfig, given)
    session = open_session(asked, given=frozenset(given), say=log.info)
    if session.run.read() is None:
        session.record = replace(session.record, command=_as_command(given))
    return _steps(session, asked.keep_awake)


def _as_command(given: dict[str, Any]) -> str:
    """The equivalent command, for run.json."""
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    return command("train", *chain.from_iterable([f"--{name}"] if value is True else [f"--{name}", value] for name, value in said.items()))


def _steps(session: Session, keep_awake: bool) -> Generator[StepReport, None, None]:
    from positron_mini.device import awake

    session.say = log.info
    for line in session.lines:
        log.info(line)
    with awake(keep_awake, log.warning):
        yield from session.steps()
