"""The figures of a report: drawn once, written as PNG for a README and as SVG with the colours and fonts of the page.

An SVG is drawn with a placeholder for each colour, which is then replaced by a CSS variable.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from positron_mini.export.escaping import visible
from positron_mini.report.corpus import Corpus
from positron_mini.report.learned import SkillLine
from positron_mini.store.run_history import RunHistory

# name of the CSS variable: (placeholder in the SVG, colour of the PNG)
COLOURS = {
    "ink": ("#0a0b01", "#23262b"),
    "muted": ("#0a0b02", "#62676e"),
    "rule": ("#0a0b03", "#dedbd3"),
    "accent": ("#0a0b04", "#1f5fa6"),
    "faint": ("#0a0b05", "#9dbbdd"),
    "warm": ("#0a0b06", "#b3560f"),
    "paper": ("#0a0b07", "#ffffff"),
}
WIDE, NARROW, SMALL = (9.6, 4.7), (4.5, 4.0), (4.5, 2.5)  # inches at 72 points
PNG_DPI = 150
BINS = 320
MOST_LETTERS = 48  # characters of a name beside a row
WHITE_FROM = 0.75  # share of the darkest colour from which a white figure is easier to read than a dark one
NAME_HEIGHT = 0.052  # height of a name in the margin, as a share of the axis
LABELS = {"uniform": "uniform", "unigram": "unigram", "bigram": "bigram", "entropy": "generator's entropy"}

Paint = dict[str, str]
Draw = Callable[[Any, Paint], None]


# --- from a drawing to bytes ------------------------------------------------------------------------------------------------------------


def _only(settings: dict[str, Any]) -> Any:
    """A context in which these settings of matplotlib hold and else its defaults: a `matplotlibrc` of this folder could start LaTeX."""
    import matplotlib
    from matplotlib.style.core import STYLE_BLACKLIST

    defaults: dict[str, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in STYLE_BLACKLIST}
    known: Any = defaults | settings
    return matplotlib.rc_context(known)


def _figure(draw: Draw, size: tuple[float, float], paint: Paint) -> Any:
    from matplotlib.figure import Figure

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": paint["ink"],
        "axes.edgecolor": paint["rule"],
        "axes.labelcolor": paint["muted"],
        "xtick.color": paint["muted"],
        "ytick.color": paint["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": paint["rule"],
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.facecolor": paint["paper"],
        "figure.facecolor": paint["paper"],
        "svg.fonttype": "none",
        "svg.hashsalt": "positron",
        "text.parse_math": False,  # names of skills come from a file
    }
    with _only(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, paint)
        return figure


def png(draw: Draw, size: tuple[float, float] = WIDE) -> bytes:
    """The drawing as PNG on white; the same drawing gives the same bytes."""
    out = io.BytesIO()
    with _only({}):
        _figure(draw, size, {name: colour for name, (_, colour) in COLOURS.items()}).savefig(
            out, format="png", dpi=PNG_DPI, metadata={"Software": None}
        )
    return out.getvalue()


def svg(draw: Draw, size: tuple[float, float], name: str) -> str:
    """The drawing as an `<svg>` element for a page: no XML declaration, ids that begin with `name`, colours from CSS variables.

    Coordinates are rounded to a hundredth of a point.
    """
    out = io.StringIO()
    with _only({"svg.fonttype": "none", "svg.hashsalt": "positron"}):
        _figure(draw, size, {role: mark for role, (mark, _) in COLOURS.items()}).savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>\s*", "", text, flags=re.S)
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for role, (mark, _) in COLOURS.items():
        text = text.replace(mark, f"var(--{role})")
    text = re.sub(r'\b(d|x|y|transform|viewBox)="[^"]*"', lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


# --- what is drawn ----------------------------------------------------------------------------------------------------------------------


def binned(points: Sequence[tuple[float, float]], bins: int = BINS, *, log: bool) -> list[tuple[float, float]]:
    """Points averaged within `bins` equal intervals of x, or of log x; empty intervals give none."""
    if not points:
        return []
    place = math.log if log else float
    low, high = place(points[0][0]), place(points[-1][0])
    groups: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        groups.setdefault(min(bins - 1, int((place(x) - low) / max(high - low, 1e-12) * bins)), []).append((x, y))
    return [tuple(math.fsum(values) / len(values) for values in zip(*group, strict=True)) for _, group in sorted(groups.items())]  # type: ignore[misc]


@dataclass(frozen=True)
class Curve:
    """A line of a figure: points (x, y), whether it is the main one, and its label."""

    points: list[tuple[float, float]]
    is_main: bool
    label: str


@dataclass(frozen=True)
class Chart:
    """Curves with horizontal lines `levels` (y, name), vertical ones `moments` (x, name) and marked points `dots` of the main curve."""

    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[float, str], ...] = ()
    moments: tuple[tuple[float, str], ...] = ()
    dots: tuple[tuple[float, float], ...] = ()
    is_log: bool = False
    from_zero: bool = False

    def __call__(self, figure: Any, paint: Paint) -> None:
        """Draw it into a matplotlib figure."""
        axes = figure.add_subplot()
        if self.is_log:
            axes.set_xscale("log")
        for curve in self.curves:
            x, y = zip(*curve.points, strict=True) if curve.points else ((), ())
            colour, width = (paint["accent"], 1.8) if curve.is_main else (paint["faint"], 1.0)
            axes.plot(x, y, color=colour, linewidth=width, label=curve.label, zorder=3 if curve.is_main else 2)
        if self.dots:
            x, y = zip(*self.dots, strict=True)
            axes.plot(x, y, "o", color=paint["accent"], markeredgecolor=paint["paper"], markersize=5, zorder=4)
        self._limits(axes)
        main = next((curve for curve in self.curves if curve.is_main and curve.points), None)
        reached = (main.points[-1][1], "this model") if main is not None and self.levels else None
        _levels(axes, self.levels, reached, paint)
        _moments(axes, self.moments, paint)
        axes.set_xlabel(self.x_label)
        axes.set_title(self.y_label, loc="left", fontsize=9.5, color=paint["muted"])
        axes.tick_params(which="both", length=0)
        _tick_format(axes)
        if len(self.curves) > 1:
            axes.legend(loc="lower left", fontsize=9, framealpha=1.0, facecolor=paint["paper"], edgecolor=paint["paper"])

    def _limits(self, axes: Any) -> None:
        known = [y for curve in self.curves for _, y in curve.points] + [y for y, _ in self.levels]
        if not known:
            return
        low, high = min(known), max(known)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(0 if self.from_zero else low - room, high + room)


def _levels(axes: Any, levels: Sequence[tuple[float, str]], reached: tuple[float, str] | None, paint: Paint) -> None:
    """Draw dashed lines, labelled in the right margin together with the main curve's end; labels do not overlap."""
    for y, _ in levels:
        axes.axhline(y, color=paint["warm"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    low, high = axes.get_ylim()
    named = [(y, name, paint["warm"], "normal") for y, name in levels]
    named += [] if reached is None else [(*reached, paint["accent"], "bold")]
    named.sort(reverse=True)
    places = spread([(y - low) / (high - low) for y, *_ in named], NAME_HEIGHT)
    for (y, name, colour, weight), place in zip(named, places, strict=True):
        axes.annotate(
            f"{y:.2f} {name}",
            (1.0, place),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            weight=weight,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Descending positions in [0, 1], moved as little as possible to be at least `gap` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(min(place, moved[-1] - gap) if moved else place)
    lowest = min(places[-1], 0.0) if places else 0.0
    for i in range(len(moved) - 1, -1, -1):  # those pushed below the axis push the others up
        lowest = max(moved[i], lowest)
        moved[i] = lowest
        lowest += gap
    return moved


def _moments(axes: Any, moments: Sequence[tuple[float, str]], paint: Paint) -> None:
    for place, (x, name) in enumerate(moments):
        axes.axvline(x, color=paint["muted"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            name,
            (x, 0.985 - 0.08 * place),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8.5,
            color=paint["muted"],
            bbox={"facecolor": paint["paper"], "edgecolor": "none", "pad": 1.5},
            zorder=5,
        )


def _tick_format(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def count(value: float) -> str:
    """A number for an axis: 500, 2 k, 3 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:,.3g}{unit}"
    return f"{value:,.4g}"


# --- the charts of a run ----------------------------------------------------------------------------------------------------------------


def loss_chart(record: RunHistory, corpus: Corpus) -> Chart:
    """Nats per token against tokens read, on a logarithmic axis: training loss, validation, references."""
    train = binned([(row.tokens, row.loss) for row in record.reports], log=True)
    validation = [(float(row.tokens), row.val_loss) for row in record.validations if row.val_loss is not None]
    watched = set(record.observed)
    dots = tuple((float(row.tokens), row.val_loss) for row in record.validations if row.val_loss is not None and row.step in watched)
    levels = tuple((line.loss, LABELS[line.name]) for line in corpus.references)
    curves = (Curve(train, False, "training"), Curve(validation, True, "validation"))
    return Chart("training tokens read (logarithmic)", "loss, nats per token", curves, levels, moments(record, "tokens"), dots, is_log=True)


def bits_chart(record: RunHistory, corpus: Corpus) -> Chart:
    """Bits per byte of the validation text against training time, with the references not far above it."""
    unit, seconds = time_unit(record)
    rows = [(row.elapsed_s / seconds, row.val_bpb, row.step) for row in record.validations if row.val_bpb is not None]
    watched = set(record.observed)
    top = max((bits for _, bits, _ in rows), default=0.0)
    levels = tuple((line.bits_per_byte, LABELS[line.name]) for line in corpus.references if line.bits_per_byte <= 1.25 * top)
    dots = tuple((x, bits) for x, bits, step in rows if step in watched)
    curve = Curve([(x, bits) for x, bits, _ in rows], True, "validation")
    return Chart(f"{unit} of training", "bits per byte of the validation text", (curve,), levels, moments(record, "time"), dots)


def time_unit(record: RunHistory) -> tuple[str, float]:
    """A readable unit for the run's time, and its seconds."""
    last = record.reports[-1].elapsed_s if record.reports else 0.0
    return ("seconds", 1.0) if last < 180 else ("minutes", 60.0) if last < 4 * 3_600 else ("hours", 3_600.0)


def moments(record: RunHistory, axis: str) -> tuple[tuple[float, str], ...]:
    """The points, in tokens or seconds, at which the windows grew to the full context and the rate began to fall."""
    named = [(record.schedule.cooldown_start, "rate falls"), (record.config.get("short_steps"), "full context")]
    found = []
    for step, name in named:
        row = record.report_at(int(step)) if step else None
        if row is not None and row.step < record.step:
            found.append((row.elapsed_s / time_unit(record)[1] if axis == "time" else float(row.tokens), name))
    return tuple(sorted(found))


def step_chart(record: RunHistory, field: str, y_label: str, *, from_zero: bool = False) -> Chart:
    """A column of the log against steps."""
    points = binned([(row.step, float(getattr(row, field))) for row in record.reports], log=False)
    return Chart("step", y_label, (Curve(points, True, y_label),), from_zero=from_zero)


def story_chart(record: RunHistory) -> Chart:
    """Bits per byte of the base model's stories against fine-tuning steps: what the model forgets."""
    points = [(float(row.step), row.story_bpb) for row in record.stories if row.story_bpb is not None]
    return Chart("step", "bits per byte of stories", (Curve(points, True, "stories"),), dots=tuple(points))


def skills_draw(lines: Sequence[SkillLine]) -> Draw:
    """A table of colours: skills by milestones, darker is better; a thin frame for skills above chance, a thick one above 80 %."""
    steps = sorted({row.step for line in lines for row in line.scores})

    def draw(figure: Any, paint: Paint) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("skill", ["#ffffff", "#cfe0f1", "#5b93c9", "#123f75"])
        for row, line in enumerate(lines):
            for score in line.scores:
                share = min(max((score.accuracy - 0.5) / 0.5, 0.0), 1.0)
                x = steps.index(score.step)
                axes.add_patch(Rectangle((x, row), 1, 1, facecolor=shades(share), edgecolor=paint["rule"], linewidth=0.5))
                colour = "#ffffff" if share > WHITE_FROM else "#23262b"
                axes.text(x + 0.5, row + 0.5, f"{score.accuracy:.0%}".rstrip("%"), ha="center", va="center", fontsize=7.5, color=colour)
            for since, width in ((line.above_chance, 1.0), (line.above_sure, 2.2)):
                if since is not None:
                    x = steps.index(since)
                    axes.add_patch(Rectangle((x, row), 1, 1, fill=False, edgecolor=paint["warm"], linewidth=width, zorder=5))
        axes.set_xlim(0, len(steps))
        axes.set_ylim(len(lines), 0)
        axes.set_xticks(
            [i + 0.5 for i in range(len(steps))], [f"{step:,}" for step in steps], fontsize=8, rotation=45 if len(steps) > 12 else 0
        )
        titles = [visible(line.title)[:MOST_LETTERS] for line in lines]
        axes.set_yticks([i + 0.5 for i in range(len(lines))], titles, fontsize=9, color=paint["ink"])
        axes.set_xlabel("step")
        axes.set_title(
            "right pairs of 100 (by guessing 50); framed where it rose above chance, thick above 80",
            loc="left",
            fontsize=9.5,
            color=paint["muted"],
        )
        axes.tick_params(length=0)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return draw
