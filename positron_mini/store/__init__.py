"""Runs on disk: records, logs, checkpoints, the state of each run, and the choice of one for a command."""
