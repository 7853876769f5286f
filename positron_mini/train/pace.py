"""Keep a run to its time: estimate its end from the cost of its steps so far, and move the horizon.

A run with `--budget` has a horizon like any other; it only moves. Every move is an event in run.json, so a resumed run has the same rates.
"""

from __future__ import annotations

import statistics
from collections import deque

from positron_mini.optim import Schedule, move_horizon

TOLERANCE = 0.01  # share of the budget by which the end may differ before the horizon moves
LOOKS = 50  # checks of the horizon per run
FEWEST_STEPS = 5  # before their times are used
LONG_ROWS_COST = 1.08  # whole windows relative to half windows, per token: 1.07 (MicroGPT), 1.08 (TinyGPT), docs/results/recipes.md


class Pacer:
    """Clock of a run. `look` takes each step's times and returns a new schedule if the horizon has to move.

    All times are seconds of training (`elapsed_s`); they include validation, samples and saving, but not the sleep of a closed laptop.
    """

    def __init__(
        self,
        budget_s: float,
        short_steps: int,
        *,
        cooldown_steps: int | None = None,
        compiled: bool = False,
        most_steps: int | None = None,
    ) -> None:
        self.budget_s, self.short_steps, self.cooldown_steps, self.compiled = budget_s, short_steps, cooldown_steps, compiled
        self.most_steps = most_steps  # that the text is worth, however much time is left
        self._times: dict[bool, deque[float]] = {True: deque(maxlen=30), False: deque(maxlen=30)}  # key: whether in half windows
        self._begun: set[bool] = set()
        self._compile_s = 0.0
        self._other_s: list[float] = []  # per step: validation, samples, saving

    def move(
        self, step: int, step_s: float, other_s: float, elapsed_s: float, schedule: Schedule, *, has_turned: bool
    ) -> Schedule | None:
        """A schedule with a new horizon if the run would not end on time, else None.

        If the held-out loss `has_turned`, the run ends with the next step. The times are those of `look`.
        """
        moved = self.look(step, step_s, other_s, elapsed_s, schedule)
        if not has_turned or schedule.horizon is None:
            return moved
        return move_horizon(schedule, step, step + 1) if step + 1 < schedule.horizon else None

    def look(self, step: int, step_s: float, other_s: float, elapsed_s: float, schedule: Schedule) -> Schedule | None:
        """A schedule with a new horizon if the run would not end on time, else None.

        `step_s` is the time of `step`, `other_s` that of validation, samples and saving after it, `elapsed_s` all training so far.
        """
        is_short = step <= self.short_steps
        if is_short in self._begun:
            self._times[is_short].append(step_s)
        elif self.compiled:  # the first step with rows of a new width includes compilation
            self._compile_s = max(self._compile_s, step_s)
        self._begun.add(is_short)
        self._other_s.append(other_s)
        horizon = schedule.horizon
        if horizon is None or step >= horizon or len(self._times[is_short]) < FEWEST_STEPS:
            return None
        if step % max(1, horizon // LOOKS):
            return None
        spare = self.budget_s - elapsed_s - self.needed_s(step, horizon)
        if abs(spare) <= TOLERANCE * self.budget_s:
            return None
        last_step_s = self._step_s(horizon <= self.short_steps) + statistics.fmean(self._other_s)
        wanted = max(step + 1, min(horizon + round(spare / last_step_s), self.most_steps or 1 << 60))
        return None if wanted == horizon else move_horizon(schedule, step, wanted, self.cooldown_steps)

    def needed_s(self, step: int, horizon: int) -> float:
        """Seconds from the end of `step` to the end of the run, estimated from its steps so far."""
        short = max(0, min(horizon, self.short_steps) - step)
        long = horizon - step - short
        still_to_compile = self._compile_s if False not in self._begun and long > 0 else 0.0
        steps = short * self._step_s(True) + long * self._step_s(False)
        return steps + still_to_compile + (horizon - step) * statistics.fmean(self._other_s) + max(self._other_s)

    def _step_s(self, is_short: bool) -> float:
        """Seconds of a step in half or whole windows; a kind without data is estimated from the other."""
        if self._times[is_short]:
            return statistics.fmean(self._times[is_short])
        other = statistics.fmean(self._times[not is_short])
        return other / LONG_ROWS_COST if is_short else other * LONG_ROWS_COST
