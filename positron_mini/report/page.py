"""The report as one HTML file: no script, nothing loaded from elsewhere (its content security policy forbids both)."""

from __future__ import annotations

import shlex
from pathlib import Path

from positron_mini.config.units import spell_time
from positron_mini.report import plots
from positron_mini.report.advice import Verdict, constant_rate
from positron_mini.report.corpus import Corpus
from positron_mini.report.evolution import Evolution
from positron_mini.report.markup import amount, command_block, details, esc, figure, large, pairs, section, table
from positron_mini.report.parts import corpus_section, method_section, samples_section, setup_section, skills_section
from positron_mini.store.run_history import shown_path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(found: Evolution) -> str:
    """The whole page."""
    sections = [
        advice_section(found),
        curve_section(found),
        samples_section(found),
        skills_section(found),
        speed_section(found),
        corpus_section(found),
        setup_section(found),
        method_section(),
    ]
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(found.record.name)}: how it learned</title>\n"
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{header(found)}\n'
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(found: Evolution) -> str:
    """Title, a summary paragraph, and the key figures."""
    record = found.record
    return (
        f'<header>\n<p class="kicker">Evolution report</p>\n<h1>{esc(record.name)}</h1>\n<p class="lead">{lead(found)}</p>\n'
        + pairs(_key_figures(found), "keys")
        + "\n</header>"
    )


def lead(found: Evolution) -> str:
    """Two sentences of HTML that describe the run."""
    record = found.record
    name, size = str(record.config.get("config") or "A model"), record.shape.parameters if record.shape else 0
    what = f"{esc(name)}, a language model of {large(size)} parameters"
    if record.kind != "pretrain":
        what = f"A language model of {large(size)} parameters that was fine-tuned on conversations"
    if not record.reports:
        return f"{what}. It has not finished a step yet."
    last = record.reports[-1]
    read = f"read {large(last.tokens)} tokens in {last.step:,} steps and {spell_time(last.elapsed_s)}"
    on = f"on {esc(record.machine)} in {esc(record.device.get('precision', 'an unknown precision'))}"
    sentences = [f"{what}, {read} {on}."]
    rows = record.validations
    if len(rows) > 1:
        first, newest = rows[0], rows[-1]
        sentences.append(
            f"On text it never trained on it went from {first.val_bpb:.2f} bits per byte at step {first.step:,} "
            f"to <strong>{newest.val_bpb:.3f}</strong>."
        )
    return " ".join(sentences)


def _key_figures(found: Evolution) -> list[tuple[str, str]]:
    record, rows = found.record, found.record.validations
    figures: list[tuple[str, str]] = []
    if rows:
        figures.append(("bits per byte, validation", amount(rows[-1].val_bpb)))
        figures.append(("nats per token, validation", amount(rows[-1].val_loss)))
    if record.reports:
        last = record.reports[-1]
        figures.append(("of training", spell_time(last.elapsed_s)))
        figures.append(("tokens read", large(last.tokens)))
    if found.skills:
        sure = sum(line.above_sure is not None for line in found.skills)
        figures.append(("skills above 80 %", f"{sure} of {len(found.skills)}"))
    return figures


# --- what to do -------------------------------------------------------------------------------------------------------------------------


def advice_section(found: Evolution) -> str:
    """The three verdicts, and the next command."""
    advice, place = found.advice, found.record.place
    command = advice.next_command.replace(shlex.quote(place), shlex.quote(shown_path(place)))
    cards = "".join(_card(verdict) for verdict in (advice.stories, advice.fine_tuning, advice.improving))
    return section(
        "advice",
        "Shall I go on?",
        f'<p class="verdict">{esc(advice.headline[:1].upper() + advice.headline[1:])}.</p>\n<ul class="cards">{cards}</ul>',
        f"<p>What to type next:</p>{command_block(command)}",
        _forecast(found),
    )


def _card(verdict: Verdict) -> str:
    word = {True: "Yes", False: "No", None: "Not measured"}[verdict.answer]
    kind = {True: "yes", False: "no", None: "open"}[verdict.answer]
    return f'<li class="{kind}"><h3>{esc(verdict.question)}</h3><p class="answer">{word}</p><p>{esc(verdict.reason)}</p></li>'


def _forecast(found: Evolution) -> str:
    """The cost and gain of twice the tokens; empty once the rate falls, because the line is fitted before."""
    share, rows, reports = found.advice.share_per_doubling, found.record.validations, found.record.reports
    if share is None or share <= 0 or constant_rate(found.record)[-1].step < rows[-1].step:
        return ""
    newest = rows[-1].val_bpb or 0.0
    epochs = 2 * (found.epochs or 0.0)
    again = f" The text would have been read {epochs:.1f} times by then; more text would help more." if epochs > 4 else ""
    return (
        f'<p class="note">If the curve keeps its course, {large(2 * reports[-1].tokens)} tokens instead of {large(reports[-1].tokens)}, '
        f"{spell_time(2 * reports[-1].elapsed_s)} in all, would lead to about {newest * (1 - share):.2f} bits per byte.{again}</p>"
    )


# --- the curve --------------------------------------------------------------------------------------------------------------------------


def curve_section(found: Evolution) -> str:
    """Loss against tokens, bits per byte against time, and the figures behind both."""
    record, corpus = found.record, found.corpus
    if not record.reports:
        return ""
    parts = [_drawn(plots.loss_chart(record, corpus), "loss", _loss_alt(found), _loss_caption(corpus))]
    if record.validations:
        parts.append(_drawn(plots.bits_chart(record, corpus), "bits", _bits_alt(found), _bits_caption(corpus)))
        parts.append(details("All validations as a table", _validation_table(found)))
    if record.stories:
        caption = "<b>What it forgets.</b> Bits per byte of stories like those the base model was trained on: a rise is forgetting."
        parts.append(_drawn(plots.story_chart(record), "story", "Bits per byte of stories over the steps of the fine-tuning.", caption))
    return section("curve", "The curve", *parts)


def _drawn(chart: plots.Draw, name: str, alt: str, caption: str) -> str:
    return figure(plots.svg(chart, plots.WIDE, f"{name}-w"), plots.svg(chart, plots.NARROW, f"{name}-n"), alt, caption)


def _loss_alt(found: Evolution) -> str:
    first, last = found.record.reports[0], found.record.reports[-1]
    levels = "".join(f"; {plots.LABELS[line.name]} at {line.loss:.2f}" for line in found.corpus.references)
    rows = found.record.validations
    ended = f", validation ends at {rows[-1].val_loss:.2f}" if rows else ""
    return f"Training loss falls from {first.loss:.2f} to {last.loss:.2f} nats per token over {last.tokens:,} tokens{ended}{levels}."


def _loss_caption(corpus: Corpus) -> str:
    explained = {
        "uniform": "<i>uniform</i> knows nothing, ln(vocabulary)",
        "unigram": "<i>unigram</i> knows how frequent each piece is",
        "bigram": "<i>bigram</i> also knows the one piece before",
        "entropy": "<i>the generator's entropy</i> is what chance decides in this made text, and no model can be below it",
    }
    known = "; ".join(explained[line.name] for line in corpus.references)
    lines = f" Dashed lines are what simple models need on the same validation text: {known}." if known else ""
    return (
        "<b>Surprise per token.</b> The loss is the mean of &minus;ln p that the model gave to the token that came, in nats; lower is "
        "better. Thin: the text it trains on, averaged over neighbouring steps. Thick: text held back, with a dot at each milestone that "
        f"was validated.{lines}"
    )


def _bits_alt(found: Evolution) -> str:
    rows = found.record.validations
    return f"Bits per byte of the validation text fall from {rows[0].val_bpb:.3f} at step {rows[0].step:,} to {rows[-1].val_bpb:.3f}."


def _bits_caption(corpus: Corpus) -> str:
    bigram = corpus.reference("bigram")
    below = " Below the bigram line it uses more than the last piece." if bigram else ""
    return (
        "<b>Surprise per byte, over time.</b> The same in bits per byte of text (the nats of all tokens / ln 2 / UTF-8 bytes), which does "
        "not depend on the vocabulary: this is the number to compare models by. While the rate is constant the running average of the "
        f"weights is measured, from the first falling step on the weights themselves.{below}"
    )


def _validation_table(found: Evolution) -> str:
    rows = [
        (f"{row.step:,}", f"{row.tokens:,}", amount(row.elapsed_s / 60, 1), amount(row.loss), amount(row.val_loss), amount(row.val_bpb))
        for row in found.record.validations
    ]
    heads = ("step", "tokens", "minutes", "training loss", "validation loss", "bits per byte")
    return table(heads, rows, "Losses in nats per token; the training loss is of one step")


# --- speed, time, memory ----------------------------------------------------------------------------------------------------------------


def speed_section(found: Evolution) -> str:
    """Throughput, learning rate and gradient over steps; time and memory as figures."""
    record = found.record
    if not record.reports:
        return ""
    small = [
        ("tok_per_s", "tokens a second", True, "Speed of each step, pauses not counted."),
        ("lr", "learning rate", True, "Warm-up, constant, cool-down; AdamW scale."),
        ("grad_norm", "gradient norm", False, "Before clipping; a jump is a batch that surprised it."),
    ]
    charts = "".join(
        figure(
            plots.svg(plots.step_chart(record, field, label, from_zero=zero), plots.SMALL, field),
            None,
            f"{label} over steps, {plots.count(getattr(record.reports[-1], field))} at step {record.step:,}",
            esc(caption),
        )
        for field, label, zero, caption in small
    )
    return section("speed", "Speed and memory", f'<div class="row">{charts}</div>', pairs(_speed_facts(found)))


def _speed_facts(found: Evolution) -> list[tuple[str, str]]:
    record, speed = found.record, found.tok_per_s or 0.0
    elapsed = record.reports[-1].elapsed_s
    facts = [
        ("training time", f"{spell_time(elapsed)}, validation, samples and saving included"),
        ("median speed", f"{speed:,.0f} tokens a second"),
    ]
    if record.scoring_s and elapsed > 0:
        scored = sum(record.scoring_s)
        facts.append(("scoring skills", f"{spell_time(scored)} for {len(record.scoring_s)} milestones, {scored / elapsed:.1%} of the time"))
    if record.shape is not None and record.kind == "pretrain":
        flops = record.shape.flops_per_token()
        facts.append(("arithmetic", f"{flops / 1e6:,.1f} MFLOP a token forward and backward, so {speed * flops / 1e9:,.1f} GFLOP/s"))
    if record.shape is not None:
        facts.append(("weights in memory", f"{4 * record.shape.parameters / 1e6:,.1f} MB (4 bytes each)"))
    if found.state_bytes is not None:
        facts.append(("training state", f"{found.state_bytes / 1e6:,.1f} MB on disk: weights, optimizer, running average"))
    peak = f"{record.peak_bytes / 1e9:.2f} GB, the whole process" if record.peak_bytes else "not recorded by this run"
    return [*facts, ("peak memory", peak)]
