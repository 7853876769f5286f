"""Positron Mini: a small language model that you train yourself, from scratch, on the machine you have."""

__version__ = "0.1.0"
