"""Are the figures the same in a real worker's prefork pool?"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.figures import Figure, at_most
from benchmarks.project import make_project
from benchmarks.stage import Stage


def measure(stage: Stage) -> list[Figure]:
    """The same tasks, sent to a ``celery worker`` with one pool process."""
    stage.clear()
    chunks, bursts = stage.size(100_000, 2000), stage.size(20, 2)
    project = make_project(stage.url)
    with _worker(stage.url):
        calls, durations = [], []
        for _ in range(1 + stage.size(5, 1)):
            calls.append(_result(project.app, "write_in_bursts", bursts, 1000))
            durations.append(_result(project.app, "write_and_flush", chunks)[1])
    project.close()
    call = statistics.median(calls[1:]) * 1e6
    return [
        Figure("worker_write_call_us", call, "us", budget=at_most(call, 4, "us")),
        Figure("worker_durable_chunks_per_s", chunks / statistics.median(durations[1:]), "1/s"),
    ]


def _result(app: Celery, task: str, *args: Any) -> Any:
    return app.send_task(f"benchmarks.{task}", args).get(timeout=60)


@contextmanager
def _worker(url: str) -> Iterator[None]:
    command = [
        sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.worker_app", "worker",
        "--pool", "prefork", "--concurrency", "1", "--loglevel", "ERROR",
        "--without-gossip", "--without-mingle",
    ]  # fmt: skip
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "BENCHMARKS_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
