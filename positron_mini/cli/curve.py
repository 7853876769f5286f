"""A loss curve drawn in text, for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from positron_mini.cli.terminal import print

if TYPE_CHECKING:
    from positron_mini.store.run_folder import RunFolder

BARS = " ▁▂▃▄▅▆▇█"


def curve_lines(
    points: Sequence[tuple[int, float]], *, width: int = 60, height: int = 8, floor: float | None = None, floor_name: str = ""
) -> list[str]:
    """The curve through `points` (step, value) as lines of text; values in one column are averaged. Nothing for fewer than two.

    With `floor` (value, name) the axis is the line at that value.
    """
    if len(points) < 2:
        return []
    first, last = points[0][0], points[-1][0]
    columns: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        columns[min(width - 1, (step - first) * width // max(last - first, 1))].append(value)
    means = [sum(column) / len(column) if column else None for column in columns]
    known = [mean for mean in means if mean is not None]
    low, high = min(known) if floor is None else floor, max(known)
    scale = (height * 8 - 1) / (high - low) if high > low else 0.0
    eighths = [None if mean is None else 1 + round((mean - low) * scale) for mean in means]
    lines = []
    for row in range(height - 1, -1, -1):
        bars = "".join(" " if e is None else BARS[max(0, min(8, e - 8 * row))] for e in eighths)
        label = f"{high:7.3f}" if row == height - 1 else f"{low:7.3f}" if row == 0 else " " * 7
        lines.append(f"{label} │{bars}")
    axis = f"{floor_name:─^{width}}" if floor is not None else "─" * width
    lines.append(f"{'':7} └{axis}")
    label = f"step {first}"
    lines.append(f"{'':9}{label} {str(last).rjust(width - len(label) - 1)}")
    return lines


def print_curve(run: RunFolder) -> None:
    """Print the loss curve in nats per token; for a story-world text its axis is the generator's entropy."""
    from positron_mini.store.run_logs import StepReport, log_path, typed_rows
    from positron_mini.text.corpus.note import generator_entropy

    record, points, ratio = run.read(), [], None
    for row in typed_rows(StepReport, log_path(run.path, "metrics")):
        points.append((row.step, row.loss))
        ratio = row.val_loss / row.val_bpb if row.val_loss and row.val_bpb else ratio
    entropy = None if record is None else generator_entropy(record.text)
    if entropy is None or ratio is None:
        lines = curve_lines(points)
    else:
        lines = curve_lines(points, floor=entropy * ratio, floor_name=f" generator's entropy, {entropy:.3f} bits per byte ")
    for line in lines:
        print(line)
