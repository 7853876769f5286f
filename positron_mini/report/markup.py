"""Small parts of a page. Every text of a model or a file goes through `esc`, so that none of it acts as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from positron_mini.export.escaping import visible


def esc(value: object) -> str:
    """A value as text of an HTML page, safe between tags and in attributes."""
    return html.escape(visible(str(value)), quote=True)


def section(name: str, heading: str, *parts: str) -> str:
    """A section with an id to link to."""
    return f'<section id="{name}" aria-labelledby="{name}-h">\n<h2 id="{name}-h">{esc(heading)}</h2>\n' + "\n".join(parts) + "\n</section>"


def figure(wide: str, narrow: str | None, alt: str, caption: str) -> str:
    """A figure in two widths, of which the style sheet shows one. `alt` describes the picture, `caption` (HTML) explains it."""
    drawings = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>' if narrow is not None else wide
    return f'<figure>\n<div class="plot" role="img" aria-label="{esc(alt)}">{drawings}</div>\n<figcaption>{caption}</figcaption>\n</figure>'


def pairs(rows: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """A list of names and values; values are HTML."""
    return f'<dl class="{kind}">' + "".join(f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in rows) + "</dl>"


def command_block(*commands: str) -> str:
    """Commands to copy; a line may break before a flag, but not between its dashes."""
    lines = "\n".join(re.sub(r"(^| )(--?\w+)", r'\1<span class="flag">\2</span>', esc(command)) for command in commands)
    return f'<pre class="command"><code>{lines}</code></pre>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table of HTML cells, the first of each row its name; it scrolls if it is too wide."""
    top = "".join(f'<th scope="col">{esc(head)}</th>' for head in heads)
    body = "".join(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>\n" for first, *rest in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table class="figures">'
        f"<caption>{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that the reader can open."""
    return f"<details><summary>{esc(summary)}</summary>\n{content}\n</details>"


def amount(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number with so many decimals and its unit; a dash for None."""
    return "\u2013" if value is None else f"{value:,.{digits}f}{unit}"


def large(value: float) -> str:
    """A large count in short: 3.44 million."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"
