"""Laws of believing a measurement: others must have had the processor, and pairs must agree; told by counts, without any load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from positron_mini.device.quiet import Ratio, Usage, disturbance, paired, usage


def test_O6_a_small_share_disturbs_only_where_other_programs_had_the_rest() -> None:
    # 10 s on two of two cores: 20 s of work in all
    for own_s, all_s, disturbed in ((19.0, 20.0, False), (12.0, 20.0, False), (11.0, 20.0, True), (11.0, 12.9, False), (11.0, 13.1, True)):
        said = disturbance(Usage(5.0, 1.0, 100.0), Usage(15.0, 1.0 + own_s, 100.0 + all_s), threads=2, cores=2)
        assert bool(said) is disturbed, (own_s, all_s)
    assert disturbance(Usage(0.0, 0.0, 0.0), Usage(10.0, 6.0, 20.0), threads=2, cores=2).startswith("only 30% of the processor")


def test_O6_without_such_counts_the_load_tells_and_without_a_load_the_share_alone() -> None:
    for load, disturbed in ((2.1, False), (3.0, True), (None, True)):
        assert bool(disturbance(Usage(0.0, 0.0), Usage(10.0, 8.0, load=load), threads=2, cores=2)) is disturbed


def test_O6_time_that_the_host_takes_counts_as_taken(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 900 50 0 0 300 7 7\ncpu0 1 2 3\n")
    busy = usage(stat).all_s
    stat.write_text("cpu  100 0 0 900 50 0 0 0 7 7\n")
    still = usage(stat).all_s
    assert busy is not None and still is not None and busy == 4 * still  # 400 ticks of work and steal against 100
    assert usage(tmp_path / "none").all_s is None


def test_O6_what_disturbs_both_of_a_pair_changes_nothing() -> None:
    slowed = [1.0, 0.2, 0.7]  # the share of the processor in each pair
    one, other = iter([100 * share for share in slowed]), iter([130 * share for share in slowed])
    assert paired(lambda: next(one), lambda: next(other), 1.03) == Ratio(pytest.approx(1.3), True)


def test_O6_a_single_odd_pair_is_outvoted_and_many_decide_nothing() -> None:
    def measured(values: list[float]) -> tuple[Ratio, int]:
        left: Iterator[float] = iter(values)
        found = paired(lambda: 1.0, lambda: next(left), 1.03)
        return found, len(values) - len(list(left))

    assert measured([1.3, 1.3, 1.3, 9.0]) == (Ratio(1.3, True), 3)
    assert measured([1.3, 0.4, 1.3, 1.3, 1.3, 9.0]) == (Ratio(1.3, True), 5)
    assert measured([1.3, 0.4, 1.3, 0.4, 1.3, 0.4, 1.3, 9.0]) == (Ratio(1.3, False), 7)


def test_O6_pairs_are_measured_in_turn_and_begin_with_another_each_time() -> None:
    calls: list[str] = []

    def call(name: str) -> float:
        calls.append(name)
        return 1.0

    paired(lambda: call("a"), lambda: call("b"), 2.0)
    assert "".join(calls) == "abbaab"
