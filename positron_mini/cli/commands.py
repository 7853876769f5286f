"""The commands, and the subcommands that have their own help."""

from __future__ import annotations

# command -> (module of this package, what it does); the source of `positron --help`
COMMANDS: dict[str, tuple[str, str]] = {
    "new": ("new", "your own text: a report, advice, and the command that trains a model of it"),
    "prepare": ("prepare", "fetch or make a text, clean it, turn it into tokens, report on it"),
    "bootstrap": ("bootstrap", "everything from nothing to a model, in one command"),
    "train": ("train", "train a model from a text, or go on with a run"),
    "incremental": ("incremental", "train in chunks, and decide after each what comes next"),
    "sft": ("sft", "fine-tune a base model on conversations"),
    "quicksft": ("quicksft", "fine-tune the newest base run on the sample conversations"),
    "generate": ("generate", "continue a prompt"),
    "chat": ("chat", "ask a model: one question, a pipe of them, or a conversation"),
    "score": ("score", "the log-probability of every line read from stdin"),
    "eval": ("evaluate", "measure a checkpoint: bits per byte of a text, or a suite"),
    "report": ("report", "write the evolution report of a run: curves, samples, skills"),
    "compare": ("compare", "two runs or checkpoints side by side"),
    "serve": ("serve", "an OpenAI-compatible server and the lab page for one checkpoint"),
    "lab": ("lab", "look inside your models: the page for all runs, in the browser"),
    "export": ("export", "write a GGUF file for llama.cpp and Ollama, or a Hugging Face folder"),
    "runs": ("runs", "list the runs there are; prune old steps"),
    "verify": ("verify", "check every file of a run, and that steps repeat byte for byte"),
    "doctor": ("doctor", "prove that this machine computes right, and how fast"),
    "bench": ("bench", "measure training, decoding, preparation and start-up"),
    "completion": ("completion", "a script that completes commands and flags in your shell"),
    "info": ("info", "the presets, or the shape and figures of a checkpoint"),
}
SUBCOMMANDS = ("runs prune",)
