"""Sections of the page about the model's abilities, and about how the figures were measured."""

from __future__ import annotations

import re
from collections.abc import Sequence

from positron_mini.errors import command
from positron_mini.evaluate.pairs import SKILLS, skill_pairs
from positron_mini.report import advice, corpus, learned
from positron_mini.report.evolution import Evolution
from positron_mini.report.learned import Claim, SkillLine
from positron_mini.report.markup import command_block, details, esc, pairs, section
from positron_mini.report.timeline import MOST_SHOWN, Entry, shown_steps, timelines
from positron_mini.store.run_history import RunHistory, shown_path
from positron_mini.text.corpus.report import report_lines

FEW_SAMPLES, FEW_CELLS = 6, 4
MOST_CELLS = 16
WHITE_FROM = 0.64  # share of the darkest colour from which light figures are easier to read than dark ones
MOST_CHARACTERS = 4_000  # of one sample


# --- samples ----------------------------------------------------------------------------------------------------------------------------


def samples_section(found: Evolution) -> str:
    """The same prompts at the milestones."""
    samples = found.record.samples
    if not samples:
        return ""
    first = samples[0]
    steps = {sample.step for sample in samples}
    intro = (
        f"<p>The same beginnings with the same seeds at each milestone, temperature {first.temperature:g}; nothing is picked by hand. "
        "<mark>Marked</mark> is what differs from the sample above; where less than three tenths of its words were kept, nothing is "
        "marked.</p>"
    )
    shown = "".join(_prompt(prompt, entries) for prompt, entries in timelines(samples, FEW_SAMPLES).items())
    parts = [intro, shown]
    if len(steps) > FEW_SAMPLES:
        every = "".join(_prompt(prompt, entries) for prompt, entries in timelines(samples, MOST_SHOWN).items())
        parts.append(details(f"More milestones: {min(len(steps), MOST_SHOWN)} of {len(steps)}", every))
    return section("samples", "In its own words", *parts)


def _prompt(prompt: str, entries: Sequence[Entry]) -> str:
    rows = "\n".join(_entry(entry, is_first=i == 0) for i, entry in enumerate(entries))
    return f'<article class="prompt">\n<h3><q>{esc(prompt)}</q></h3>\n<ol class="timeline">\n{rows}\n</ol>\n</article>'


def _entry(entry: Entry, *, is_first: bool) -> str:
    left = MOST_CHARACTERS
    words = []
    for piece in entry.pieces:
        text = esc(piece.text[:left])
        words.append(f"<mark>{text}</mark>" if piece.is_new else text)
        left = max(0, left - len(piece.text))
    cut = " [...]" if len(entry.sample.text) > MOST_CHARACTERS else ""
    kept = "" if is_first else f'<span class="kept">{f"{entry.kept} of {entry.words} words kept" if entry.kept else "all new"}</span>'
    text = "".join(words).strip() or '<span class="kept">(it ended at once)</span>'
    return f'<li><div class="when"><b>step {entry.sample.step:,}</b>{kept}</div><blockquote>{text}{cut}</blockquote></li>'


# --- skills -----------------------------------------------------------------------------------------------------------------------------


def skills_section(found: Evolution) -> str:
    """The claims about the skills, the table of colours, and when each was learned."""
    lines = found.skills
    if not lines:
        text = "<p>No skills were measured in this run. Its newest checkpoint can be measured with:</p>"
        measure = command("eval", "--suite", "skills", "--ckpt", shown_path(found.record.place))
        return section("skills", "What it can do", text, command_block(measure))
    pairs_each = sorted({row.pairs for line in lines for row in line.scores})
    number = f"{pairs_each[0]:,}" if len(pairs_each) == 1 else f"{pairs_each[0]:,} to {pairs_each[-1]:,}"
    intro = (
        f"<p>Each skill is {number} pairs of texts that differ in one thing, of which one is right. The number says in how many of 100 "
        "pairs the model finds the right one likelier; guessing gives 50. A thin frame marks where a skill rose above chance for good, a "
        "thick one where it rose above 80: by its 95 % interval, and by a test that allows for looking at all skills together.</p>"
    )
    unlearned = f'<p class="note">{esc(_unlearned(lines))}</p>'
    return section("skills", "What it can do", _claims(found.claims), intro, _heat(lines), unlearned, _asked(lines))


def _claims(claims: Sequence[Claim]) -> str:
    """One sentence per supported claim."""
    if not claims:
        return "<p>No skill is above chance yet.</p>"
    items = []
    for claim in claims:
        names = ", ".join(f"{esc(line.title)} (from step {line.above_chance:,})" for line in claim.evidence)
        count = "all" if len(claim.evidence) == claim.of else f"{len(claim.evidence)} of {claim.of} skills"
        level = f"{count} above 80 %; above chance:" if claim.word == "firm" else f"{count} above chance:"
        heading = f"<b>{esc(claim.area[:1].upper() + claim.area[1:])}</b> <i>{claim.word}</i>"
        items.append(f"<li>{heading} <span>{level} {names}</span></li>")
    return f'<ul class="claims">{"".join(items)}</ul>'


def _unlearned(lines: Sequence[SkillLine]) -> str:
    names = [line.title for line in lines if line.above_chance is None]
    return f"Not above chance: {', '.join(names)}." if names else "Every skill is above chance."


def _asked(lines: Sequence[SkillLine]) -> str:
    """Each skill with its first pair: the right text, and the wrong one."""
    items = []
    for line in lines:
        if line.skill in SKILLS:
            pair = skill_pairs(line.skill, 2)[0]
            texts = f"<span>right: {esc(pair.good)}</span><span>wrong: {esc(pair.bad)}</span>"
            items.append((line.title, esc(SKILLS[line.skill].about) + texts))
    return details("What each skill asks, with one of its pairs", pairs(items, "facts asked")) if items else ""


def _heat(lines: Sequence[SkillLine]) -> str:
    """The accuracies as a table of colours; a narrow page shows only some columns."""
    every = sorted({row.step for line in lines for row in line.scores})
    risen = {step for line in lines for step in (line.above_chance, line.above_sure) if step is not None}
    steps = every if len(every) <= MOST_CELLS else sorted(set(shown_steps(every, max(2, MOST_CELLS - len(risen)))) | risen)
    few = set(shown_steps(steps, FEW_CELLS))
    heads = "".join(f'<th scope="col"{_narrow(step, few)}>{step:,}</th>' for step in steps)
    body = "\n".join(_heat_row(line, steps, few) for line in lines)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Skills by step"><table class="heat">'
        "<caption>Right pairs of 100 at each step</caption>"
        f'<thead><tr><th scope="col">skill</th>{heads}<th scope="col">95 % interval</th></tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _narrow(step: int, few: set[int]) -> str:
    return "" if step in few else ' class="more"'


def _heat_row(line: SkillLine, steps: Sequence[int], few: set[int]) -> str:
    by_step = {row.step: row for row in line.scores}
    cells = []
    for step in steps:
        row = by_step.get(step)
        if row is None:
            cells.append(f"<td{_narrow(step, few)}></td>")
            continue
        share = min(max(2 * row.accuracy - 1, 0.0), 1.0)
        kinds = ["" if step in few else "more", "dark" if share > WHITE_FROM else "", "sure" if step == line.above_sure else ""]
        kinds.append("risen" if step == line.above_chance else "")
        title = f"{row.accuracy:.1%}, 95 % interval {row.low:.1%} to {row.high:.1%}, {row.pairs:,} pairs"
        names = " ".join(kind for kind in kinds if kind)
        cells.append(f'<td class="{names}" style="--share:{share:.2f}" title="{esc(title)}">{100 * row.accuracy:.0f}</td>')
    return (
        f'<tr><th scope="row"{_about(line.skill)}>{esc(line.title)}<small>{_since(line)}</small></th>{"".join(cells)}'
        f'<td class="interval">{100 * line.newest.low:.0f}\u2013{100 * line.newest.high:.0f}</td></tr>'
    )


def _about(skill: str) -> str:
    return f' title="{esc(SKILLS[skill].about)}"' if skill in SKILLS else ""


def _since(line: SkillLine) -> str:
    if line.above_chance is None:
        return "not above chance"
    sure = "" if line.above_sure is None else f", above 80 from {line.above_sure:,}"
    return f"above chance from {line.above_chance:,}{sure}"


# --- where the figures come from --------------------------------------------------------------------------------------------------------


def corpus_section(found: Evolution) -> str:
    """The text: its source, its contents, and what was left out."""
    known, rows = found.corpus, []
    source = _source(found)
    if source:
        rows.append(("source", esc(source)))
    if known.report:
        for line in report_lines({**known.report, "samples": []}):
            name, _, value = line.partition(":")
            rows.append((name.strip(), esc(value.strip())))
        if found.epochs is not None:
            rows.append(("read", f"{found.epochs:.2f} times by the end of this run"))
    if not rows:
        return ""
    return section(
        "text", "The text", "<p>What the preparation found. Validation stories are chosen by a hash of the story.</p>", pairs(rows)
    )


def _source(found: Evolution) -> str:
    note = found.corpus.note
    if note.get("corpus") == "storyworld":
        return f"{note.get('stories'):,} stories generated by the story world, seed {note.get('seed')}"
    return f"{note['source']}, revision {str(note.get('revision'))[:12]}, licence {note.get('licence')}" if note.get("source") else ""


def setup_section(found: Evolution) -> str:
    """The commands that reproduce the run, and the machine it ran on."""
    record = found.record
    commands = command_block(*found.commands)
    shape = record.shape
    rows = []
    if shape is not None:
        heads = f"{shape.n_head} heads of {shape.head_dim}"
        rows.append(
            ("shape", f"{shape.n_layer} layers, width {shape.n_embd}, {heads}, feed-forward {shape.ffn:,}, context {shape.context_len:,}")
        )
        rows.append(("vocabulary", f"{shape.vocab_size:,} pieces"))
    schedule = record.schedule
    end = "open-ended" if schedule.horizon is None else f"cool-down over the last {schedule.cooldown_steps:,} of {schedule.horizon:,} steps"
    rows.append(("schedule", f"warm-up over {schedule.warmup_steps:,} steps, {end}"))
    rows += [("begun", esc(record.started))] if record.started else []
    rows.append(("device", esc(f"{record.device.get('device')}, {record.device.get('precision')} ({record.device.get('reason')})")))
    rows += [(name, esc(version)) for name, version in record.versions.items()]
    rows += [(f"sha256 of the {name}", f"<code>{esc(str(value)[:16])}</code>") for name, value in _fingerprints(found)]
    text = "<p>On the same kind of device and the same versions these commands give the same bytes.</p>"
    if record.is_timed:
        text = (
            "<p>This run had a time to keep, so the clock decided how many steps it took: the command gives a run of equal length in time, "
            f"not of equal bytes. Its own steps can be computed again, to the byte: <code>{esc(_replay(record))}</code></p>"
        )
    happened = [(f"step {step:,}", esc(text)) for step, text in record.happened]
    way = details("What happened on the way", pairs(happened)) if happened else ""
    return section("again", "Do it again", text, commands, details("What it ran on", pairs(rows)), way)


def _replay(record: RunHistory) -> str:
    return command("verify", shown_path(record.place), "--replay", 20)


def _fingerprints(found: Evolution) -> list[tuple[str, object]]:
    return [(name, found.record.identity[name]) for name in ("text", "tokenizer", "data", "base") if found.record.identity.get(name)]


def method_section() -> str:
    """The rules behind the references, claims and advice, from the docstrings of their modules."""
    rules = {"Lines in the curve": corpus.__doc__, "What counts as learned": learned.__doc__, "Advice": advice.__doc__}
    parts = [f"<h3>{name}</h3>{_paragraphs(text or '')}" for name, text in rules.items()]
    return section("method", "How these figures are made", details("Definitions and rules", "".join(parts)))


def _paragraphs(text: str) -> str:
    """Docstring text as HTML: paragraphs between empty lines, lines that begin with a dash as items of a list."""
    parts = []
    for paragraph in text.strip().split("\n\n"):
        start, *items = re.split(r"^- ", paragraph, flags=re.M)
        parts.append(f"<p>{esc(start)}</p>" if start.strip() else "")
        parts.append("<ul>" + "".join(f"<li>{esc(item)}</li>" for item in items) + "</ul>" if items else "")
    return "".join(parts)
