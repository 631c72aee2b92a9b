"""``python -m benchmarks [--quick] [name ...]``; ``BENCH_JSON=file`` writes JSON too."""

from __future__ import annotations

import argparse
import os
import time
from importlib import import_module
from pathlib import Path

from benchmarks.figures import Figure, show, write_json
from benchmarks.stage import own_server

#: The questions, in the order of the table; each is a module with a ``measure(stage)``.
QUESTIONS = (
    "write",
    "throughput",
    "commands",
    "memory",
    "latency",
    "initialize",
    "growth",
    "credentials",
    "worker",
)


def main() -> None:
    """Ask, and show the answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(QUESTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="see whether they run; the figures mean nothing"
    )
    arguments = parser.parse_args()
    names = arguments.names or QUESTIONS
    if unknown := set(names).difference(QUESTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    figures: list[Figure] = []
    with own_server(quick=arguments.quick) as stage:
        for name in names:
            module = import_module(f"benchmarks.{name}")
            print(f"{name}: {(module.__doc__ or '').strip()}", flush=True)
            start = time.monotonic()
            figures += module.measure(stage)
            print(f"    {time.monotonic() - start:.0f} s", flush=True)
    show(figures)
    if path := os.environ.get("BENCH_JSON"):
        write_json(figures, Path(path))


if __name__ == "__main__":
    main()
