"""The model by itself: `from gpt_min import GPT`. Run it to see its table of shapes. The code is in positron_mini/model.py."""

from positron_mini.config import PRESETS, ModelConfig
from positron_mini.model import GPT, KVCache

__all__ = ["GPT", "PRESETS", "KVCache", "ModelConfig"]

if __name__ == "__main__":
    from positron_mini.cli import main

    raise SystemExit(main(["info"]))
