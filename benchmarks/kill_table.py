"""The table of random kills, for the terminal and for docs/reliability.md."""

from __future__ import annotations

import statistics
from typing import Any


def table(outcomes: list[dict[str, Any]]) -> list[str]:
    """The outcomes as a table: how many of each kind and place, how many ended equal, how many steps were computed again."""
    lines = ["| what | killed | kills | equal in the end | steps computed again: mean, most |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for outcome in outcomes:
        for where in ("at any moment", outcome["where"]):
            groups.setdefault((outcome["kind"], where), []).append(outcome)
    for (kind, where), each in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        again = [outcome["steps_again"] for outcome in each]
        equal = sum(not outcome["differences"] for outcome in each)
        lines.append(f"| {kind} | {where} | {len(each)} | {equal} | {statistics.mean(again):.1f}, {max(again)} |")
    return lines
