"""The files of a report: one page and some pictures."""

from __future__ import annotations

from pathlib import Path

from positron_mini import files
from positron_mini.errors import PositronError
from positron_mini.own_files import refuse_link
from positron_mini.report import plots
from positron_mini.report.corpus import remember
from positron_mini.report.evolution import Evolution
from positron_mini.report.page import page

MOST_BYTES = 1_500_000
PICTURES = ("loss.png", "bits_per_byte.png", "skills.png", "throughput.png")


def pictures(found: Evolution) -> dict[str, tuple[plots.Draw, tuple[float, float]]]:
    """The figures for a README by file name, with their sizes in inches; those without data are left out."""
    record = found.record
    drawn: dict[str, tuple[plots.Draw, tuple[float, float]]] = {}
    if record.reports:
        drawn["loss.png"] = (plots.loss_chart(record, found.corpus), plots.WIDE)
        drawn["throughput.png"] = (plots.step_chart(record, "tok_per_s", "tokens a second", from_zero=True), plots.WIDE)
    if record.validations:
        drawn["bits_per_byte.png"] = (plots.bits_chart(record, found.corpus), plots.WIDE)
    if found.skills:
        drawn["skills.png"] = (plots.skills_draw(found.skills), (plots.WIDE[0], 1.2 + 0.3 * len(found.skills)))
    return drawn


def write_report(found: Evolution) -> tuple[Path, list[Path]]:
    """Write `report.html` and the PNGs in `report/` into the run folder; return their paths. The same folder gives the same bytes."""
    text = page(found)
    if len(text.encode()) > MOST_BYTES:
        raise PositronError(
            f"the report would have {len(text.encode()):,} bytes, more than {MOST_BYTES:,}",
            "please report it as a bug, with the size of the run",
        )
    html, folder = found.record.path / "report.html", found.record.path / "report"
    refuse_link(folder)
    remember(found.record, found.corpus)
    written = []
    drawn = pictures(found)
    for old in set(PICTURES) - set(drawn):
        (folder / old).unlink(missing_ok=True)  # a picture of an earlier report, whose data is gone
    for name, (draw, size) in drawn.items():
        files.write_bytes(folder / name, plots.png(draw, size))
        written.append(folder / name)
    files.write_text(html, text)
    return html, written
