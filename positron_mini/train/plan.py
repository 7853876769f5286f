"""Where a run starts and stops: every case of continuing a run, as functions of what is recorded and what is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from positron_mini.config import RunConfig
from positron_mini.errors import RunError, UsageError
from positron_mini.optim import Schedule, make_schedule, move_horizon


@dataclass(frozen=True)
class Request:
    """What a command asks for: horizon, steps, cool-down."""

    max_steps: int | None = None
    until_step: int | None = None
    more_steps: int | None = None
    resume_from_step: int | None = None
    finish: bool = False
    cooldown_steps: int | None = None

    @classmethod
    def of(cls, config: RunConfig, max_steps: int | None, *, finish: bool = False) -> Request:
        """The request of `config` with that horizon (None: the run's own, or none)."""
        return cls(max_steps, config.until_step, config.more_steps, config.resume_from_step, finish, config.cooldown_steps)


@dataclass(frozen=True)
class Plan:
    """Start at `start` with `schedule`, pause at `until`. If the schedule `changed`, an event at `start` records it."""

    start: int
    until: int | None
    schedule: Schedule
    changed: bool = False
    rewinds: bool = False
    finished: bool = False
    say: str = ""
    asked: int | None = None  # requested cool-down steps, if any, which the schedule may have shortened


def plan_new(request: Request, warmup_steps: int) -> Plan:
    """Plan a run that does not exist yet. Errors: UsageError."""
    if request.finish or (request.resume_from_step or 0) > 0:
        flag = "--finish" if request.finish else f"--resume_from_step {request.resume_from_step}"
        raise UsageError(f"{flag}: there is no run to go on with", "name its folder with --out_dir, or leave the flag out to start one")
    made = make_schedule(warmup_steps, request.cooldown_steps, request.max_steps)
    return Plan(0, _until(0, request, None), made, say=_no_horizon(made, request), asked=request.cooldown_steps)


def plan_continuation(schedule: Schedule, newest: int, resumable: list[int], request: Request, asked: int | None = None) -> Plan:
    """Plan how to continue a run with `schedule` whose newest usable step is `newest`. `resumable`: all steps with training state; `asked`:
    the cool-down requested when the schedule was made, which may have been too long for it.

    Same horizon: go on. Smaller: pause there. Larger: the horizon moves, or, when the cool-down has begun, training goes back to the last
    step of the constant rate. Another cool-down: used if the rate has not begun to fall. Errors: UsageError, RunError.
    """
    start, rewinds, say = newest, False, ""
    if request.resume_from_step is not None:
        start, rewinds = _resume_step(request.resume_from_step, newest, resumable), request.resume_from_step < newest
    plan = Plan(start, None, schedule, rewinds=rewinds)
    if request.finish:
        plan = plan_finish(plan, request.cooldown_steps)
    elif request.max_steps is not None and request.max_steps != schedule.horizon:
        plan = _other_horizon(plan, request, resumable)
    if not plan.changed and request.cooldown_steps not in (None, asked, schedule.cooldown_steps):
        plan = _other_cooldown(plan, request, resumable)
    until = _until(plan.start, request, plan.until)
    horizon = plan.schedule.horizon
    finished = horizon is not None and plan.start >= horizon
    if finished and horizon is not None:
        say = f"this run is finished: {horizon:,} of {horizon:,} steps are done"
        if request.more_steps is not None or (request.until_step or 0) > horizon:
            say += f"; --max_steps {2 * horizon} trains it further, from the last step before its rate fell"
    elif until is not None and plan.start >= until:
        finished, say = True, f"step {until:,} is already done (the newest is {plan.start:,})"
    return replace(plan, until=until, finished=finished, say=say or plan.say)


def _resume_step(wanted: int, newest: int, resumable: list[int]) -> int:
    if wanted == 0 or wanted in resumable:
        return wanted
    have = ", ".join(f"{step:,}" for step in resumable[-6:]) or "none"
    raise RunError(
        f"step {wanted:,} has no training state to resume from (the newest step is {newest:,}); steps that have one: {have}",
        f"--resume_from_step {resumable[-1] if resumable else 0}",
    )


def plan_finish(plan: Plan, cooldown_steps: int | None) -> Plan:
    """Add a cool-down from the plan's start on, by default over a quarter of the steps done. Errors: UsageError."""
    start, schedule, begins = plan.start, plan.schedule, plan.schedule.cooldown_start
    if begins is not None and (start > begins or (start == begins and cooldown_steps in (None, schedule.cooldown_steps))):
        return plan  # cooling down, about to, or done
    if start == 0:
        raise UsageError("--finish: no step is done yet, there is nothing to cool down", "train some steps first")
    if cooldown_steps == 0:
        raise UsageError("--finish --cooldown_steps 0: there would be nothing to do", f"--finish --cooldown_steps {max(1, start // 4)}")
    cooldown = max(1, start // 4) if cooldown_steps is None else cooldown_steps
    finishing = Schedule(min(schedule.warmup_steps, start), cooldown, start + cooldown)
    say = f"cooling down over {cooldown:,} steps, to end at step {start + cooldown:,}"
    return replace(plan, schedule=finishing, changed=True, say=say, asked=cooldown_steps)


def _other_horizon(plan: Plan, request: Request, resumable: list[int]) -> Plan:
    wanted, schedule, start = request.max_steps, plan.schedule, plan.start
    assert wanted is not None
    if schedule.horizon is not None and wanted < schedule.horizon:
        return replace(plan, until=wanted, say=f"the run's horizon stays {schedule.horizon:,} steps; pausing at {wanted:,}")
    say = f"the horizon moves to {wanted:,} steps"
    cooldown_start = schedule.cooldown_start
    if cooldown_start is not None and start > cooldown_start:
        if cooldown_start > 0 and cooldown_start not in resumable:
            raise RunError(
                f"the cool-down began at step {cooldown_start:,}, which is no longer there to go back to",
                "start a new run in another --out_dir",
            )
        start, say = cooldown_start, f"{say}; going back to step {cooldown_start:,}, the last one before the rate fell"
    if start >= wanted:
        raise UsageError(
            f"--max_steps {wanted:,}: step {start:,} is already done", f"--max_steps {2 * start}, or --finish to cool down now"
        )
    moved = move_horizon(schedule, start, wanted, request.cooldown_steps)
    rewinds = plan.rewinds or start < plan.start
    return replace(plan, start=start, schedule=moved, changed=True, rewinds=rewinds, say=say, asked=request.cooldown_steps)


def _other_cooldown(plan: Plan, request: Request, resumable: list[int]) -> Plan:
    """Use the requested cool-down, if the horizon stays and the rate has not begun to fall. Errors: UsageError."""
    schedule, begins, wanted = plan.schedule, plan.schedule.cooldown_start, request.cooldown_steps
    assert wanted is not None
    if schedule.horizon is None:
        return replace(plan, say=_no_horizon(schedule, request))
    if plan.until is not None:  # a smaller --max_steps is only a pause here: its cool-down may be meant for another run
        return replace(plan, say=f"{plan.say}; the cool-down stays {schedule.cooldown_steps:,} steps")
    if plan.start > (schedule.horizon - 1 if begins is None else begins):
        how = "the run has ended"
        if begins is not None:
            how = f"the cool-down over {schedule.cooldown_steps:,} steps began after step {begins:,}"
        back = f", or go back with --resume_from_step {begins}" if begins in (0, *resumable) else ""
        raise UsageError(f"--cooldown_steps {wanted:,}: {how}", f"leave it out{back}")
    moved = move_horizon(schedule, plan.start, schedule.horizon, wanted)
    say = f"the cool-down becomes {moved.cooldown_steps:,} of the {schedule.horizon:,} steps"
    return replace(plan, schedule=moved, changed=True, say=say, asked=wanted)


def _no_horizon(schedule: Schedule, request: Request) -> str:
    """Message about a cool-down for an open-ended run; empty for other requests."""
    ignored = request.cooldown_steps is not None and schedule.horizon is None
    return "the run is open-ended: --cooldown_steps takes effect with --finish or --max_steps" if ignored else ""


def _until(start: int, request: Request, planned: int | None) -> int | None:
    wanted = [planned, request.until_step, start + request.more_steps if request.more_steps is not None else None]
    return min((step for step in wanted if step is not None), default=None)
