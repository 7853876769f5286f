"""Optional trackers with one interface. The run folder stays the truth; a tracker gets a copy of its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from positron_mini.errors import UsageError
from positron_mini.store.run_logs import StepReport


class Tracker(Protocol):
    """Receives the report of every step."""

    def log(self, report: StepReport) -> None:
        """Record one report."""

    def close(self) -> None:
        """Write pending reports."""


class NoTracker:
    """Ignores all reports."""

    def log(self, report: StepReport) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Scalars for `tensorboard --logdir runs`, in the run's folder tensorboard/."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, report: StepReport) -> None:
        """Add one point per curve."""
        for name, value in report.record().items():
            if name != "step":
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class Trackio:
    """A local trackio project; nothing is uploaded."""

    def __init__(self, folder: Path) -> None:
        import trackio

        self._trackio: Any = trackio
        self._name, self._is_open = folder.name, False

    def log(self, report: StepReport) -> None:
        """Add one row."""
        if not self._is_open:  # also after `close`, when a run goes on in the same process
            self._trackio.init(project="positron-mini", name=self._name, resume="allow")
            self._is_open = True
        row = report.record()
        self._trackio.log(row, step=row.pop("step"))

    def close(self) -> None:
        """End the trackio run."""
        if self._is_open:
            self._trackio.finish()
        self._is_open = False


def open_tracker(kind: str, folder: Path) -> Tracker:
    """Open the tracker of `--track kind`. Errors: UsageError when its library is not installed."""
    if kind == "none":
        return NoTracker()
    try:
        return TensorBoard(folder) if kind == "tensorboard" else Trackio(folder)
    except ImportError as error:
        raise UsageError(f"--track {kind}: {kind} is not installed", f"pip install {kind}") from error
