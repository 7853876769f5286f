"""Settings of drawing tokens. The text below a field is its `--help`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from positron_mini.config.checks import check_ranges
from positron_mini.errors import UsageError

Weights = Literal["f32", "int8"]  # what tokens are written with


@dataclass(frozen=True)
class SampleConfig:
    """How the next token is drawn."""

    max_tokens: int = 80
    """most tokens to write"""
    temperature: float = 0.7
    """0 always takes the likeliest token; 1 draws from the model's own probabilities"""
    top_k: int = 0
    """keep only the k likeliest tokens (0: all)"""
    top_p: float = 1.0
    """keep the likeliest tokens that make up this share of the probability"""
    min_p: float = 0.0
    """drop tokens below this share of the likeliest one's probability"""
    repetition_penalty: float = 1.0
    """divide the logits of tokens that already occurred (1: off)"""
    presence_penalty: float = 0.0
    """subtract this from the logits of tokens that were already written"""
    frequency_penalty: float = 0.0
    """subtract this from the logit of a token for each time it was already written"""
    seed: int = 0
    """seed of the draws"""
    stop: tuple[str, ...] = ()
    """end before any of these strings"""

    def __post_init__(self) -> None:
        check_ranges(self, {"max_tokens": 1, "top_k": 0, "seed": 0})
        limits = {"temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 100.0)}
        limits |= {"presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(
                    f"--{name} is {value}, it must be at least {low:g} and at most {high:g}", f"--{name} {getattr(SampleConfig, name)}"
                )
        if any(not text for text in self.stop):
            raise UsageError("--stop is an empty string, which every text contains", 'name a string, such as --stop "The end"')
