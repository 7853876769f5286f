"""`positron report`: the evolution of a run as one HTML file, and pictures for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.errors import RunError


@dataclass(frozen=True)
class ReportFlags:
    """Write RUN/report.html and RUN/report/*.png: the curve, the samples and skills at each milestone, and whether to go on."""

    run: str | None = None
    """run folder (default: the newest under runs/)"""
    json: bool = False
    """print one JSON object with every figure of the report"""


def run(argv: Sequence[str]) -> int:
    """Report; 0 when done."""
    flags = parse(ReportFlags, argv, "report")
    from positron_mini.cli.terminal import printable
    from positron_mini.report.build import write_report
    from positron_mini.report.evolution import evolution

    found = evolution(_folder(flags.run))
    html, images = write_report(found)
    if flags.json:
        written = {"html": str(html), "bytes": html.stat().st_size, "images": [str(path) for path in images]}
        print_json({**found.summary(), **written})
        return 0
    advice = found.advice
    rows = found.record.validations
    figure = f": {rows[-1].val_bpb:.3f} bits per byte" if rows else ""
    print(printable(f"{found.record.place}, step {found.record.step:,}{figure}; {advice.headline}"))
    for verdict in (advice.stories, advice.fine_tuning, advice.improving):
        word = {True: "yes", False: "no", None: "not measured"}[verdict.answer]
        print(printable(f"  {verdict.question} {word}. {verdict.reason}"))
    for claim in found.claims:
        print(printable(f"  {claim.area} {claim.word}: {', '.join(line.title for line in claim.evidence)}"))
    print(f"written: {html} ({html.stat().st_size / 1e3:,.0f} kB), {', '.join(path.name for path in images) or 'no pictures'}")
    print(printable(f"next:    {here(advice.next_command)}"))
    return 0


def _folder(given: str | None) -> Path:
    """The run named, also by one of its steps or `latest`; if none is named the newest, with a note. Errors: RunError."""
    from positron_mini.store.find import list_runs

    if given is not None:
        path = Path(given)
        is_inside = not (path / "run.json").is_file() and (path.parent / "run.json").is_file() and path.parent != path
        return path.parent if is_inside else path
    runs = list_runs()
    if not runs:
        raise RunError("there is no run under runs/", "positron train --dataset_path FILE   or   positron report --run FOLDER")
    note(f"reporting on {runs[0]}")
    return runs[0]
