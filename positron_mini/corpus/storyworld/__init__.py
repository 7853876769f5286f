"""The story world: unlimited children's stories from a simulated world, with what is true in each of them."""

from positron_mini.corpus.storyworld.output import fact_lines, write_corpus
from positron_mini.corpus.storyworld.tales import Story, stories, story

VERSION = 1  # goes up when the same seed gives other bytes

__all__ = ["VERSION", "Story", "fact_lines", "stories", "story", "write_corpus"]
