"""From what `--dataset` names to a text on this disk: a path, the story world, TinyStories, any data set of the hub, or a mix of them."""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
from pathlib import Path
from typing import Any

from positron_mini.corpus.dataset import resolve_source, write_dataset, write_documents
from positron_mini.corpus.download import Say
from positron_mini.corpus.files import read_documents
from positron_mini.corpus.memo import signature_of
from positron_mini.corpus.mix import choose, mixed, parse_mix
from positron_mini.corpus.reading import ReadStats
from positron_mini.errors import PositronError, UsageError
from positron_mini.files import read_json, write_json

STORYWORLD_STORIES = 20_000  # about 18 MB, a few epochs in half an hour on a laptop
TINYSTORIES_BYTES_PER_STORY = 900  # a little above the mean, to ask the hub for enough
ENTROPY_STORIES = 2_000  # their mean is within a percent of that of all


def obtain(dataset: str, *, stories: int | None = None, text_out: Path | None = None, seed: int = 0, say: Say) -> Path:
    """The path of the text that `dataset` names, after fetching or writing it where that is needed.

    `stories` limits it to the first so many; `text_out` says where it is written (default data/<name>.txt; a path is used as it lies).
    Errors: DataError, UsageError, HubError with the manual way as its hint.
    """
    shares = parse_mix(dataset)
    if text_out is not None:
        _check_free(text_out, dataset)
    if shares is not None:
        return write_mix(shares, text_out, stories=stories, seed=seed, say=say)
    if dataset == "storyworld":
        return write_storyworld(text_out or Path("data/storyworld.txt"), STORYWORLD_STORIES if stories is None else stories, seed, say)
    source = resolve_source(dataset)
    if source.kind == "tinystories":
        from positron_mini.corpus.hub import write_tinystories

        first = None if stories is None else stories * TINYSTORIES_BYTES_PER_STORY
        out = text_out or Path("data/tinystories.txt")
        _check_note(out)
        return write_tinystories(out, first_bytes=first, say=say).text
    if source.kind == "dataset":
        out = text_out or Path("data") / f"{source.repo.replace('/', '--')}.txt"
        return write_dataset(source, out, max_documents=stories, say=say).text
    assert source.path is not None
    if text_out is None and stories is None:
        return source.path
    out = text_out or Path("data") / f"{source.path.stem}{'' if stories is None else f'-{stories}'}.txt"
    if out.exists() and out.resolve() == source.path.resolve():
        raise _same(out)
    count = write_documents(out, itertools.islice(read_documents(source.path, stats=ReadStats()), stories))
    say(f"{out}: {count:,} stories")
    return out


def write_storyworld(out: Path, stories: int, seed: int, say: Say) -> Path:
    """`out`, holding that many stories of the story world, of which `seed` names one. A finished earlier text is kept."""
    from positron_mini.corpus import storyworld

    facts = {"corpus": "storyworld", "version": storyworld.VERSION, "seed": seed, "stories": stories}
    if _is_there(out, facts):
        say(f"{out} is already there: {stories:,} stories")
        return out
    storyworld.write_corpus(out, seed, stories)
    entropy = storyworld.entropy_bits_per_byte(seed, min(stories, ENTROPY_STORIES))
    write_json(_note_path(out), {**facts, "entropy_bits_per_byte": round(entropy, 5)})
    say(f"{out}: {stories:,} stories from the story world, seed {seed}; the generator's entropy is {entropy:.3f} bits per byte")
    return out


def write_mix(shares: list[tuple[str, float]], out: Path | None, *, stories: int | None, seed: int, say: Say) -> Path:
    """`out`, holding the texts that are named, by their shares of bytes, with at most so many stories. A finished earlier text is kept."""
    paths = [obtain(name, seed=seed, say=say) for name, _ in shares]
    facts = {
        "corpus": "mix",
        "shares": {name: round(share, 6) for name, share in shares},
        "texts": [signature_of(path, None) for path in paths],
        "seed": seed,
        "stories": stories,
    }
    out = out or Path("data") / f"mix-{hashlib.sha256(repr((shares, stories, seed)).encode()).hexdigest()[:8]}.txt"
    if _is_there(out, facts):
        say(f"{out} is already there")
        return out
    say(f"mixing {', '.join(f'{share:.0%} {name}' for name, share in shares)}")
    ingredients = choose(paths, [share for _, share in shares], seed)
    count = write_documents(out, itertools.islice(mixed(ingredients), stories))
    write_json(_note_path(out), facts)
    parts = [f"{each.chosen_bytes / 1e6:,.1f} MB of {name}" for (name, _), each in zip(shares, ingredients, strict=True)]
    say(f"{out}: {count:,} stories{'' if stories is None else ' of a mix'} from {', '.join(parts)}")
    return out


def _same(out: Path) -> UsageError:
    return UsageError(f"{out}: this is the text to be read, and would be overwritten", f"--text_out {_quoted(out, '-copy.txt')}")


def _check_free(out: Path, dataset: str) -> None:
    """Nothing, or UsageError when something stands at `out` that is no text of ours, which has a note beside it: it is not replaced."""
    if not os.path.lexists(out):
        return
    if Path(dataset).exists() and out.resolve() == Path(dataset).resolve():
        raise _same(out)
    if out.is_symlink() or not out.is_file() or not {"corpus", "source"} & _note(out).keys():
        free = next(name for number in itertools.count(2) if not os.path.lexists(name := f"{out.with_suffix('')}-{number}.txt"))
        raise UsageError(f"{out}: is there already, and would be overwritten", f"--text_out {shlex.quote(free)}")


def _quoted(out: Path, ending: str) -> str:
    """The path with another ending, as a shell reads it."""
    return shlex.quote(str(out.with_suffix("")) + ending)


def _note_path(out: Path) -> Path:
    """The file beside a text that says what it is; it is written last. Errors: UsageError when the text has that name."""
    note = out.with_suffix(".json")
    if note == out:
        raise UsageError(f"{out}: this name is kept for the note on the text", f"--text_out {_quoted(out, '.txt')}")
    return note


def _check_note(out: Path) -> Path:
    """The place of the note on the text `out`. Errors: UsageError when a file of the user's stands there."""
    note = _note_path(out)
    if os.path.lexists(note) and not {"corpus", "source"} & _note(out).keys():
        raise UsageError(f"{note}: this is not a note on a text, and would be overwritten", f"--text_out {out.with_suffix('')}-text.txt")
    return note


def _is_there(out: Path, facts: dict[str, Any]) -> bool:
    """Whether the text with these facts lies there finished; if not, `out` may be written. Errors: UsageError for a file of the user's."""
    note, found = _check_note(out), note_of(out)
    if out.is_file() and facts.items() <= found.items():
        return True
    note.unlink(missing_ok=True)
    return False


def generator_entropy(text: Path) -> float | None:
    """Bits per byte of the choices that made a story-world text, which no model can be below; None for any other text."""
    found = note_of(text)
    return found.get("entropy_bits_per_byte") if found.get("corpus") == "storyworld" else None


def note_of(text: Path) -> dict[str, Any]:
    """What `positron prepare` noted beside a text it wrote; empty where there is none, where a file of the user's has its name, or where
    the text has another size by now."""
    if not text.name or text.suffix == ".json":
        return {}
    found = _note(text)
    if text.is_file() and found.get("text_bytes", text.stat().st_size) != text.stat().st_size:
        return {}
    return found


def _note(text: Path) -> dict[str, Any]:
    """The object in the file that has the name of the note on a text; empty where there is none."""
    try:
        found = read_json(text.with_suffix(".json"))
    except PositronError:
        return {}
    return found if isinstance(found, dict) else {}
