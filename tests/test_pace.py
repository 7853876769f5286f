"""Laws of the pacer: a simulated run ends on time whatever its steps cost, and a moved horizon bends the rate, never breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from positron_mini.optim import Schedule, lr_at, make_schedule, move_horizon
from positron_mini.train.pace import Pacer


def simulate(
    budget_s: float, planned: int, step_s: Callable[[int], float], other_s: Callable[[int], float] = lambda _: 0.0
) -> tuple[float, int, int]:
    """Seconds and steps of a run whose step k costs `step_s(k)`, and how often its horizon moved."""
    schedule, elapsed, step, moves = make_schedule(20, None, planned), 0.0, 0, 0
    pacer = Pacer(budget_s, round(0.6 * planned), compiled=False)
    while schedule.horizon is not None and step < schedule.horizon:
        step += 1
        elapsed += step_s(step) + other_s(step)
        moved = pacer.look(step, step_s(step), other_s(step), elapsed, schedule)
        if moved is not None:
            schedule, moves = moved, moves + 1
    return elapsed, step, moves


@pytest.mark.parametrize(
    ("name", "step_s", "other_s"),
    [
        ("as planned", lambda k: 0.30, lambda k: 0.0),
        ("twice as fast", lambda k: 0.15, lambda k: 0.0),
        ("three times as slow", lambda k: 0.90, lambda k: 0.0),
        ("slower with whole windows", lambda k: 0.30 if k <= 600 else 0.36, lambda k: 0.0),
        ("validation every 100 steps", lambda k: 0.30, lambda k: 3.0 * (k % 100 == 0)),
        ("slower for the last third", lambda k: 0.30 if k < 650 else 0.45, lambda k: 1.0 * (k % 100 == 0)),
    ],
)
def test_a_run_ends_on_time_whatever_its_steps_cost(name: str, step_s: Callable[[int], float], other_s: Callable[[int], float]) -> None:
    elapsed, steps, _ = simulate(300.0, 1_000, step_s, other_s)
    assert abs(elapsed / 300.0 - 1) <= 0.03, (name, elapsed, steps)


def test_a_run_that_goes_as_planned_is_left_alone() -> None:
    assert simulate(309.6, 1_000, lambda k: 0.3 if k <= 600 else 0.324)[1:] == (1_000, 0)


def test_the_time_to_compile_whole_windows_is_kept_free() -> None:
    pacer, schedule = Pacer(100.0, 50, compiled=True), make_schedule(0, None, 100)
    for step in range(1, 21):
        pacer.look(step, 30.0 if step == 1 else 0.5, 0.0, 30.0 + 0.5 * step, schedule)
    assert pacer.needed_s(20, 100) == pytest.approx(30 * 0.5 + 50 * 0.5 * 1.08 + 30.0)


@given(horizon=st.integers(50, 2_000), at=st.floats(0.05, 0.95), factor=st.floats(0.3, 3.0), again=st.floats(0.05, 0.95))
def test_a_moved_horizon_goes_on_from_the_rate_of_now_and_falls_to_its_new_end(
    horizon: int, at: float, factor: float, again: float
) -> None:
    schedule, now = make_schedule(10, None, horizon), 0
    for share in (at, again):
        assert schedule.horizon is not None
        now += int(share * (schedule.horizon - now))
        wanted = max(now + 2, round(schedule.horizon * factor))
        moved = move_horizon(schedule, now, wanted)
        a_step = 1.01 / min(wanted - now + 1, schedule.cooldown_steps + 1)  # the cool-down may begin a step sooner or later
        assert lr_at(now, moved) == pytest.approx(lr_at(now, schedule), rel=a_step) or now < 10
        rates = [lr_at(step, moved) for step in range(max(now, 10), wanted)]
        assert rates == sorted(rates, reverse=True)
        assert not rates or 0 < rates[-1] <= 2 * rates[0] / len(rates)
        schedule = moved


def test_a_bend_goes_on_from_the_rate_that_was_reached() -> None:
    schedule = make_schedule(0, 60, 100)  # constant for 40 steps
    moved = move_horizon(schedule, 70, 80)
    assert moved.cooldown_start == 40 and lr_at(70, moved) == pytest.approx(lr_at(70, schedule))
    assert lr_at(79, moved) == pytest.approx(lr_at(70, schedule) / 10)
    assert move_horizon(schedule, 20, 200) == Schedule(0, 120, 200)  # while the rate is constant, the cool-down is planned anew
