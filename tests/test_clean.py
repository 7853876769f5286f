"""Stories are mended where that is certain, dropped where it is not, and every case is counted."""

from __future__ import annotations

import pytest

from positron_mini.text.corpus.clean import CleanStats, clean_stories, clean_story


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("He ran.", "He ran."),
        ("\n\n He ran.\r\nShe sat. \n\n", "He ran.\nShe sat."),
        ("â€œHiâ€\u009d, he said.", '"Hi", he said.'),
        ("â€œHi,â€ he said.", '"Hi," he said.'),  # the third byte was thrown away
        ("Itâ€™s Tomâ€™s.", "It's Tom's."),
        ("The cafÃ© was cosy.", "The café was cosy."),
        ("The cafÃƒÂ© was cosy.", "The café was cosy."),  # misread twice
        ("One â€” two.", "One — two."),
        ("A café, naïve señor – sound.", "A café, naïve señor – sound."),
        ("“Hi,” she said, ‘ho’.", "\"Hi,\" she said, 'ho'."),
        ("He didn\ufffdt go.", "He didn't go."),
        ("He didn\ufffd\ufffd\ufffdt go.", "He didn't go."),
        ("\ufffdHi!\ufffd he said.", '"Hi!" he said.'),
        ("A b\ufffdz word.", None),
        ("A â€x word.", None),
        ("A\u00a0b\u200b\u00ad c\u0000.\ufeff", "A b c."),
        ("He went to the", None),
        ('He said, "Go!"', 'He said, "Go!"'),
        ("They slept (at last.)", "They slept (at last.)"),
        ("And so it was\nThe End", "And so it was\nThe End"),
        ("He asked, “Why?”", 'He asked, "Why?"'),
        ("Because she was so,", None),
        ("", None),
        (" \n...\n", None),
    ],
)
def test_a_story_is_mended_or_dropped(raw: str, clean: str | None) -> None:
    stats = CleanStats()
    assert clean_story(raw, stats) == clean
    assert stats.stories == 1
    assert stats.kept + stats.truncated + stats.broken + stats.empty + stats.repeated == 1
    assert stats.kept == (clean is not None)
    assert clean is None or clean_story(clean, CleanStats()) == clean


def test_the_counts_name_what_was_done() -> None:
    stats = CleanStats()
    raw = ["Itâ€™s on.", "“Hi.”", "He ran.", "He ran.", "Cut off in", "A â€x.", " ", "“Hi.”"]
    assert list(clean_stories(raw, stats, set())) == ["It's on.", '"Hi."', "He ran."]
    assert stats == CleanStats(stories=8, kept=3, mended=1, straightened=2, truncated=1, broken=1, empty=1, repeated=2)
