"""The property tests with many times their usual examples, round after round, until the time is up.

python benchmarks/nightly_fuzz.py [--minutes 30] [--times 20] [tests/faults ...]

Every test of the suite that hypothesis drives is run with `--times` its usual number of examples, each round with other random ones. What
fails is printed with its smallest example: make that a test of its own, so that it is tried for ever. Exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


class Longer:
    """A pytest plugin: only property tests, each with many times its examples and no limit on the time of one."""

    def __init__(self, times: int) -> None:
        self.times = times

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Drop the other tests and raise the number of examples of these."""
        properties = [item for item in items if hasattr(getattr(item, "obj", None), "hypothesis")]
        config.hook.pytest_deselected(items=[item for item in items if item not in properties])
        items[:] = properties
        seen: set[Any] = set()
        for item in properties:
            test: Any = item.obj  # type: ignore[attr-defined]
            if test not in seen:
                seen.add(test)
                usual = getattr(test, "_hypothesis_internal_use_settings", settings())
                more = settings(usual, max_examples=usual.max_examples * self.times, deadline=None)
                getattr(test, "__func__", test)._hypothesis_internal_use_settings = more


def main() -> int:
    """Run rounds until the time is up; 0 when none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="a round that has begun is finished")
    parser.add_argument("--times", type=int, default=20, help="how many times as many examples as usual")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)  # one round, in this process
    parser.add_argument("paths", nargs="*", default=["tests"], help="test files or folders")
    flags = parser.parse_args()
    if flags.once:
        return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", *flags.paths], plugins=[Longer(flags.times)]))
    end, rounds, failed = time.monotonic() + 60 * flags.minutes, 0, 0
    while rounds == 0 or time.monotonic() < end:
        command = [sys.executable, str(Path(__file__).resolve()), "--once", "--times", str(flags.times), *flags.paths]
        has_failed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode != 0
        rounds, failed = rounds + 1, failed + has_failed
        print(f"round {rounds} {'FAILED' if has_failed else 'passed'}, {max(0.0, end - time.monotonic()) / 60:.0f} min left", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
