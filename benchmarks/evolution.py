"""The "See it learn" section of the README and docs/results/evolution.md, made from a run's folder. Nothing is typed by hand.

python benchmarks/evolution.py runs/x [--readme README.md] [--results docs/results]

The report of the run is written first. Its HTML and pictures are copied to docs/results/evolution/; both pages get what stands between

<!-- evolution:begin -->
<!-- evolution:end -->

and keep the rest; evolution.md is begun where it is missing. The same run folder gives the same bytes. Nothing is written when the
files would be too large for a repository, or when they name a folder of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
from pathlib import Path

from positron_mini.config.units import spell_time
from positron_mini.export.escaping import escaped
from positron_mini.files import write_text
from positron_mini.report.build import write_report
from positron_mini.report.evolution import Evolution, evolution
from positron_mini.report.markup import large
from positron_mini.report.timeline import shown_steps
from positron_mini.store.run_logs import Sample

BEGIN, END = "<!-- evolution:begin -->", "<!-- evolution:end -->"
TITLE = "# See it learn: one run from noise to stories\n\n"
MANY = 9  # milestones on the page
MOST_PICTURE_BYTES = 700_000  # of all pictures together; the report has its own limit


def main() -> None:
    """Write both pages and the copies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    flags = parser.parse_args()
    found = evolution(flags.run)
    page = flags.results / "evolution.md"
    readme = between_markers(flags.readme, readme_section(found, _relative(flags.results / "evolution", flags.readme)))
    results = between_markers(page, results_section(found, "evolution"), begun=TITLE)
    html, pictures = write_report(found)
    check(html, pictures, [readme, results], [Path.cwd(), Path.home(), flags.run.resolve()])
    copies = flags.results / "evolution"
    copies.mkdir(parents=True, exist_ok=True)
    for path in (html, *pictures):
        shutil.copyfile(path, copies / path.name)
    write_text(flags.readme, readme)
    write_text(page, results)
    print(f"{flags.readme}, {page}, {copies}: {found.record.name} at step {found.record.step:,}")


def check(html: Path, pictures: list[Path], pages: list[str], private: list[Path]) -> None:
    """Nothing, or SystemExit for what must not be committed."""
    size = sum(path.stat().st_size for path in pictures)
    if size > MOST_PICTURE_BYTES:
        raise SystemExit(f"the pictures have {size:,} bytes together, more than {MOST_PICTURE_BYTES:,}")
    for text in (html.read_text(encoding="utf-8"), *pages):
        for folder in map(str, private):
            if len(folder) > 1 and folder in text:
                raise SystemExit(f"{folder} stands in the text: report from the folder that the run was made in, with relative paths")


def _relative(folder: Path, page: Path) -> str:
    """`folder` as a link on `page` names it."""
    return Path(os.path.relpath(folder, page.parent)).as_posix()


def between_markers(path: Path, section: str, *, begun: str | None = None) -> str:
    """The text of `path` with `section` between the markers. A missing file begins with `begun`; one without markers is left alone."""
    if not path.is_file() and begun is not None:
        return f"{begun}{BEGIN}\n{section}\n{END}\n"
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN + "\n")
    _, also, after = rest.partition(END + "\n")
    if not found or not also:
        raise SystemExit(f"{path} has no place for it: add the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}\n{after}"


# --- sections ---------------------------------------------------------------------------------------------------------------------------


def readme_section(found: Evolution, folder: str) -> str:
    """What the README shows: the course in a sentence, one picture, where the rest is."""
    page = f"{Path(folder).parent.as_posix()}/evolution.md"
    more = f"What it wrote on the way, and when it learned what: [{page}]({page}). `positron report --run runs/NAME` makes such a page."
    return "\n\n".join(["## See it learn", _sentence(found), _picture(found, folder, "loss.png"), more])


def results_section(found: Evolution, folder: str) -> str:
    """What the page of results shows: the figures, every picture, every prompt, the skills, the advice and the commands."""
    commands = "\n".join(found.commands)
    parts = [
        _sentence(found),
        f"The whole report is one file: [report.html]({folder}/report.html); download it and open it in a browser.",
        "## The curve",
        _picture(found, folder, "loss.png"),
        _picture(found, folder, "bits_per_byte.png"),
        _validations(found),
        "## Its samples",
        _samples(found, MANY, prompts=None),
        "## Its skills",
        _picture(found, folder, "skills.png"),
        _skills(found),
        _claims(found),
        "## Shall it go on?",
        _advice(found),
        "## Its speed",
        _picture(found, folder, "throughput.png"),
        _device(found),
        "## Again",
        f"```bash\n{commands}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _sentence(found: Evolution) -> str:
    record = found.record
    last, rows = record.reports[-1], record.validations
    size = large(record.shape.parameters) if record.shape else "unknown"
    text = f"{record.config.get('config')}, {size} parameters, read {large(last.tokens)} tokens in {last.step:,} steps, "
    text += f"{spell_time(last.elapsed_s)} on {escaped(record.machine)} in {record.device.get('precision')}"
    text += f", {record.started or _last_day(record.path)}"
    if not rows:
        return f"{text}."
    return (
        f"{text}. Validation went from {rows[0].val_bpb:.3f} bits per byte at step {rows[0].step:,} to **{rows[-1].val_bpb:.3f}** "
        f"({rows[-1].val_loss:.3f} nats per token) at step {rows[-1].step:,}."
    )


def _last_day(run: Path) -> str:
    """The day of a run's last step, for a run that did not write down when it began."""
    return datetime.date.fromtimestamp((run / "metrics.jsonl").stat().st_mtime).isoformat()


def _device(found: Evolution) -> str:
    """Speed, what scoring the skills took, memory, versions."""
    record = found.record
    facts = [f"{name} {escaped(value)}" for name, value in record.versions.items() if name not in ("processor", "system")]
    if found.tok_per_s:
        facts.append(f"median speed {found.tok_per_s:,.0f} tokens a second")
    if record.scoring_s:
        seconds, share = sum(record.scoring_s), sum(record.scoring_s) / record.reports[-1].elapsed_s
        facts.append(f"scoring the skills took {spell_time(seconds)} at {len(record.scoring_s)} milestones, {share:.1%} of the time")
    if record.peak_bytes:
        facts.append(f"peak memory {record.peak_bytes / 1e9:.2f} GB")
    return f"{'; '.join(facts)}."


def _picture(found: Evolution, folder: str, name: str) -> str:
    """A picture with words for those who do not see it; empty where the report has none of that name."""
    rows = found.record.validations
    lines = ", ".join(f"{line.name} {line.loss:.2f}" for line in found.corpus.references)
    alts = {}
    if rows:
        alts["loss.png"] = f"Loss in nats per token over tokens read, down to {rows[-1].val_loss:.2f} in validation; lines: {lines}"
        alts["bits_per_byte.png"] = f"Bits per byte over the time of training, {rows[0].val_bpb:.2f} to {rows[-1].val_bpb:.2f}"
    if found.tok_per_s:
        alts["throughput.png"] = f"Tokens a second over steps, median {found.tok_per_s:,.0f}"
    if found.skills:
        alts["skills.png"] = "Right pairs of 100 for each skill at each milestone"
    return f"![{alts[name]}]({folder}/{name})" if name in alts else ""


def _samples(found: Evolution, most: int, *, prompts: int | None) -> str:
    """A table for each prompt: step, bits per byte at that step, what it wrote."""
    record = found.record
    steps = shown_steps([sample.step for sample in record.samples], most)
    by_prompt: dict[str, dict[int, Sample]] = {}
    for sample in record.samples:
        by_prompt.setdefault(sample.prompt, {})[sample.step] = sample
    tables = []
    for prompt, samples in list(by_prompt.items())[:prompts]:
        rows = [f"| {step:,} | {_bits_at(found, step)} | {escaped(samples[step].text)} |" for step in steps if step in samples]
        first = next(iter(samples.values()))
        caption = f"After **{escaped(prompt)}** (temperature {first.temperature:g}, seed {first.seed}):"
        tables.append("\n".join([caption, "", "| step | bits per byte | it wrote |", "|---|---|---|", *rows]))
    return "\n\n".join(tables)


def _bits_at(found: Evolution, step: int) -> str:
    row = found.record.report_at(step)
    return f"{row.val_bpb:.3f}" if row is not None and row.val_bpb is not None else "–"


def _claims(found: Evolution) -> str:
    """What the intervals support, and nothing else."""
    lines = []
    for claim in found.claims:
        names = ", ".join(f"{escaped(line.title)} from step {line.above_chance:,}" for line in claim.evidence)
        lines.append(f"- **{escaped(claim.area)} {claim.word}**: {names}")
    return "\n".join(lines)


def _skills(found: Evolution) -> str:
    if not found.skills:
        return ""
    rows = [
        f"| {escaped(line.title)} | {line.newest.accuracy:.1%} | {line.newest.low:.1%} to {line.newest.high:.1%} | {line.newest.pairs:,} | "
        f"{_step(line.above_chance)} | {_step(line.above_sure)} |"
        for line in found.skills
    ]
    heads = ["| skill | right pairs | 95 % interval | pairs | above chance from step | above 80 % from step |", "|---|---|---|---|---|---|"]
    return "\n".join([*heads, *rows])


def _step(step: int | None) -> str:
    return "not yet" if step is None else f"{step:,}"


def _validations(found: Evolution) -> str:
    watched = set(shown_steps([row.step for row in found.record.validations], 2 * MANY))
    rows = [
        f"| {row.step:,} | {row.tokens / 1e6:.2f} M | {row.elapsed_s / 60:.1f} | {row.val_loss:.3f} | {row.val_bpb:.3f} |"
        for row in found.record.validations
        if row.step in watched
    ]
    lines = [f"| {line.name} | | | {line.loss:.3f} | {line.bits_per_byte:.3f} |" for line in found.corpus.references]
    heads = ["| step | tokens | minutes | validation loss (nats per token) | bits per byte |", "|---|---|---|---|---|"]
    return "\n".join([*heads, *rows, *lines])


def _advice(found: Evolution) -> str:
    advice = found.advice
    rows = []
    for verdict in (advice.stories, advice.fine_tuning, advice.improving):
        word = {True: "Yes", False: "No", None: "Not measured"}[verdict.answer]
        rows.append(f"- {verdict.question} **{word}.** {escaped(verdict.reason)}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
