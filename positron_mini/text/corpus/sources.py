"""Turn a `--dataset` value into a text on this disk: a path, the story world, TinyStories, any data set of the hub, or a mix of them."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from positron_mini.errors import Say
from positron_mini.files import write_json
from positron_mini.text.corpus.dataset import resolve_source, write_dataset, write_documents
from positron_mini.text.corpus.files import read_documents
from positron_mini.text.corpus.memo import signature_of
from positron_mini.text.corpus.mix import choose, mixed, parse_mix
from positron_mini.text.corpus.note import check_free, check_note, is_there, note_path, same_text
from positron_mini.text.corpus.reading import ReadStats

STORYWORLD_STORIES = 20_000  # about 18 MB, a few epochs in half an hour on a laptop
TINYSTORIES_BYTES_PER_STORY = 900  # a little above the mean, to request enough from the hub
ENTROPY_STORIES = 2_000  # their mean entropy is within a percent of that of all


def obtain(dataset: str, *, stories: int | None = None, text_out: Path | None = None, seed: int = 0, say: Say) -> Path:
    """Provide the text that `dataset` names, downloading or writing it where needed, and return its path.

    `stories` limits it to the first so many; `text_out` says where it is written (default data/<name>.txt; a path is used in place).
    Errors: DataError, UsageError, HubError with the manual way as its hint.
    """
    shares = parse_mix(dataset)
    if text_out is not None:
        check_free(text_out, dataset)
    if shares is not None:
        return write_mix(shares, text_out, stories=stories, seed=seed, say=say)
    if dataset == "storyworld":
        return write_storyworld(text_out or Path("data/storyworld.txt"), STORYWORLD_STORIES if stories is None else stories, seed, say)
    source = resolve_source(dataset)
    if source.kind == "tinystories":
        from positron_mini.text.corpus.hub import write_tinystories

        first = None if stories is None else stories * TINYSTORIES_BYTES_PER_STORY
        out = text_out or Path("data/tinystories.txt")
        check_note(out)
        return write_tinystories(out, first_bytes=first, say=say).text
    if source.kind == "dataset":
        out = text_out or Path("data") / f"{source.repo.replace('/', '--')}.txt"
        return write_dataset(source, out, max_documents=stories, say=say).text
    assert source.path is not None
    if text_out is None and stories is None:
        return source.path
    out = text_out or Path("data") / f"{source.path.stem}{'' if stories is None else f'-{stories}'}.txt"
    if out.exists() and out.resolve() == source.path.resolve():
        raise same_text(out)
    count = write_documents(out, itertools.islice(read_documents(source.path, stats=ReadStats()), stories))
    say(f"{out}: {count:,} stories")
    return out


def write_storyworld(out: Path, stories: int, seed: int, say: Say) -> Path:
    """Write that many stories of the story world with this seed to `out` and return it. A finished earlier text is kept."""
    from positron_mini import storyworld

    facts = {"corpus": "storyworld", "version": storyworld.VERSION, "seed": seed, "stories": stories}
    if is_there(out, facts):
        say(f"{out} is already there: {stories:,} stories")
        return out
    storyworld.write_corpus(out, seed, stories)
    entropy = storyworld.entropy_bits_per_byte(seed, min(stories, ENTROPY_STORIES))
    write_json(note_path(out), {**facts, "entropy_bits_per_byte": round(entropy, 5)})
    say(f"{out}: {stories:,} stories from the story world, seed {seed}; the generator's entropy is {entropy:.3f} bits per byte")
    return out


def write_mix(shares: list[tuple[str, float]], out: Path | None, *, stories: int | None, seed: int, say: Say) -> Path:
    """Write a mix of the named texts by shares of bytes, at most so many stories, to `out` and return it. A finished earlier text is kept.
    """
    paths = [obtain(name, seed=seed, say=say) for name, _ in shares]
    facts = {
        "corpus": "mix",
        "shares": {name: round(share, 6) for name, share in shares},
        "texts": [signature_of(path, None) for path in paths],
        "seed": seed,
        "stories": stories,
    }
    out = out or Path("data") / f"mix-{hashlib.sha256(repr((shares, stories, seed)).encode()).hexdigest()[:8]}.txt"
    if is_there(out, facts):
        say(f"{out} is already there")
        return out
    say(f"mixing {', '.join(f'{share:.0%} {name}' for name, share in shares)}")
    ingredients = choose(paths, [share for _, share in shares], seed)
    count = write_documents(out, itertools.islice(mixed(ingredients), stories))
    write_json(note_path(out), facts)
    parts = [f"{each.chosen_bytes / 1e6:,.1f} MB of {name}" for (name, _), each in zip(shares, ingredients, strict=True)]
    say(f"{out}: {count:,} stories{'' if stories is None else ' of a mix'} from {', '.join(parts)}")
    return out
