"""Turn a command into a run that is ready to train: find the run, prepare its text, decide every setting, plan the steps, build.

Read `open_session` from top to bottom; `finetune.open_sft_session` takes the same steps with conversations; a `Task` is what differs. The
text comes before the decisions, because its tokenizer determines the model's size. All checks happen here; nothing in the run folder has
been touched when a session is returned.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from positron_mini import device as devices
from positron_mini.config import DEFAULT_TEXT, TrainConfig, changed_fields, model_config
from positron_mini.distributed import ALONE, Processes
from positron_mini.errors import CheckpointError, Say, command
from positron_mini.fast.losses import loss_function
from positron_mini.optim import Schedule, build_optimizer
from positron_mini.store.checkpoint import Checkpoint, load_training, open_checkpoint, step_name
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord, schedule_event, schedule_record
from positron_mini.train import budget
from positron_mini.train.find_run import CONTROL_FLAGS, find_run, rows_for_all, same_run
from positron_mini.train.law import most_steps
from positron_mini.train.plan import Plan, Request, plan_continuation, plan_new
from positron_mini.train.pretrain import Pretraining, prepare_text
from positron_mini.train.recorder import Follower, Recorder
from positron_mini.train.session import Session, changed_settings
from positron_mini.train.settings import decide
from positron_mini.train.task import Task
from positron_mini.train.track import NoTracker, open_tracker
from positron_mini.trainer import LoopConfig, StopFlag, Trainer


def open_session(
    config: TrainConfig,
    *,
    given: frozenset[str] | None = None,
    say: Say = lambda _: None,
    stop: StopFlag | None = None,
    processes: Processes = ALONE,
) -> Session:
    """Open the pretraining that `config` asks for, new or continued.

    `given` names the settings that were spelled out: they must agree with a recorded run; the others follow it. With several `processes`,
    the first must finish this before the others begin (`processes.in_turn`). Errors: PositronError of every kind.
    """
    given = changed_fields(config) if given is None else given
    clock = budget.Stopwatch()

    # 1. Find the run. A budget first decides preset and batch, and with them the folder. An existing run knows its settings.
    asked = config
    config = budget.decide(config, given, Path(config.dataset_path or DEFAULT_TEXT), processes.size, say)
    config, run, recorded = find_run(config, given, processes, say)

    # 2. Prepare the text: its tokenizer determines the model's size, its length how often it is worth reading.
    with clock.stopped():  # preparing a text does not count against the budget
        prepared = prepare_text(config, run, recorded, say)
    shape = model_config(config, prepared.tokenizer.vocab_size)
    config = replace(config, max_steps=budget.worth_reading(config, shape, prepared))

    # 3. Decide every setting that is still open. No setting is None from here on.
    why = "as asked" if asked.precision != "auto" else "by measurement"  # a budget may have timed both precisions
    settings = decide(config, shape, prepared.train.count, recorded, devices.this_machine(), say, precision_why=why)
    rows_for_all(settings.rows, processes)
    task = Pretraining(settings.recorded_in(config), settings, prepared, processes)
    if recorded is not None:
        same_run(run, recorded, task.identity)

    # 4. Plan the steps: where this call starts and pauses, and how the learning rate changes.
    most = most_steps(shape, prepared, settings.step_tokens)
    request = Request.of(config, budget.horizon_asked(config, run, recorded, most, say), finish=config.finish)
    plan, checkpoint = plan_run(run, recorded, request, config.warmup_steps, say)
    task = replace(task, horizon=budget.first_horizon(config, recorded, plan.schedule.horizon))
    spent_s = clock.seconds()  # from here on the trainer's clock counts

    # 5. Build.
    session = build(task, run, recorded, plan, checkpoint, stop=stop, processes=processes)
    if config.budget is not None:
        budget.keep_to_time(session, task, recorded, most, spent_s)
    return session


def plan_run(run: RunFolder, recorded: RunRecord | None, request: Request, warmup_steps: int, say: Say) -> tuple[Plan, Checkpoint | None]:
    """Plan where a run starts and stops; also return the checkpoint to start from, None for a new run. Errors: UsageError, RunError."""
    if recorded is None:
        return plan_new(request, warmup_steps), None
    newest = run.newest(training=True, say=say)
    step = newest.step if newest is not None and newest.step is not None else 0
    place = request.resume_from_step if request.resume_from_step is not None else step
    asked = schedule_event(recorded.events, place).get("asked_cooldown_steps")
    plan = plan_continuation(recorded.schedule_at(place), step, run.resumable(), request, asked)
    if plan.start < step and not plan.finished:
        plan = replace(plan, say=_set_back(run, plan, step, recorded.schedule_at()))
    if newest is not None and plan.start != newest.step:
        newest = open_checkpoint(run.folder(plan.start)) if plan.start > 0 else None
    return plan, newest


def _set_back(run: RunFolder, plan: Plan, newest: int, before: Schedule) -> str:
    """Message for a run that goes back from its `newest` step: where to, and what that step is renamed to."""
    back = plan.say or f"going back to step {plan.start:,}"
    is_done, place = newest == before.horizon, shlex.quote(str(run.attic() / step_name(newest)))
    stays = f"{back}; {'the finished ' if is_done else ''}step {newest:,} stays as {place}, for --ckpt"
    horizon, cooled = plan.schedule.horizon, before.cooldown_start is not None and newest > before.cooldown_start
    if cooled and (horizon is None or (plan.until is not None and plan.until < horizon)):
        stays += f"; a pause at step {plan.until:,} leaves a worse model than that one" if plan.until else "; it is better until --finish"
    return stays


def build(
    task: Task,
    run: RunFolder,
    recorded: RunRecord | None,
    plan: Plan,
    checkpoint: Checkpoint | None,
    *,
    stop: StopFlag | None = None,
    processes: Processes = ALONE,
) -> Session:
    """Build the session of a task whose settings and steps are decided: model, optimizer, trainer, recorder, record."""
    config, settings = task.config, task.settings
    device = settings.choice.device
    model = task.model().to(devices.torch_device(device))
    optimizer = build_optimizer(
        model,
        config.optimizer,
        lr=settings.lr,
        muon_lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum_warmup=task.momentum_warmup,
    )
    loop = LoopConfig(
        lr=settings.lr,
        schedule=plan.schedule,
        micro_batch=settings.micro_batch,
        grad_clip=config.grad_clip,
        dropout=config.dropout,
        seed=config.seed,
        device=device,
        precision=settings.choice.precision,
        grad_limit=config.grad_limit,
        max_skips=config.max_skips if config.on_nan == "skip" else 0,
    )
    loss = loss_function(model, device, compiled=settings.compile, native=settings.kernels == "native")
    trainer = processes.trainer(model, optimizer, task.batches(), loop, loss=loss, elapsed_s=elapsed_before(run, plan.start))
    restore(trainer, checkpoint, plan)
    is_watched = processes.is_first and not plan.finished
    tracker = open_tracker(config.track, run.path) if is_watched else NoTracker()
    recorder = (Recorder if processes.is_first else Follower)(run, trainer, task, tracker)
    record = record_of(task, recorded, plan)
    lines = task.lines(run, trainer, plan) if is_watched else []
    changes = changed_settings(recorded, record) if recorded is not None and is_watched else []
    return Session(task, run, plan, lines, trainer, recorder, record, stop or StopFlag(), run.steps(), changes, processes=processes)


def elapsed_before(run: RunFolder, step: int) -> float:
    """Seconds of training up to `step`, from the run's log."""
    return max((row.get("elapsed_s", 0.0) for row in run.metrics() if row["step"] <= step), default=0.0)


def restore(trainer: Trainer, checkpoint: Checkpoint | None, plan: Plan) -> None:
    """Restore `trainer` from `checkpoint`. Raise CheckpointError if it does not fit, or is not of the step its folder says."""
    if checkpoint is None:
        return
    state = load_training(checkpoint)
    trainer.restore(state.tensors, state.state)
    if trainer.step != plan.start:
        raise CheckpointError(
            f"{checkpoint.folder}: holds the training state of step {trainer.step:,}", "give the folder its old name back"
        )


def record_of(task: Task, recorded: RunRecord | None, plan: Plan) -> RunRecord:
    """Record of a new or continued run: identity, settings, device, versions, events."""
    # later events are void: the run was set back, or its newer steps are damaged
    events = [] if recorded is None else [event for event in recorded.events if event["step"] <= plan.start]
    if recorded is None or plan.changed:
        events.append(schedule_record(plan.schedule, plan.start, plan.asked))
    choice = task.settings.choice
    return RunRecord(
        kind=task.kind,
        identity=task.identity,
        config={k: v for k, v in asdict(task.config).items() if k not in CONTROL_FLAGS},
        device={"device": choice.device, "precision": choice.precision, "reason": choice.reason},
        versions=devices.describe_versions(),
        events=tuple(events),
        started=recorded.started if recorded else datetime.date.today().isoformat(),
        command=recorded.command if recorded else command(*sys.argv[1:]),
        other=recorded.other if recorded else {},
        **task.facts,
    )
