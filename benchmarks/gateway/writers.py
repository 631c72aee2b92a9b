"""The gateway's appends as production has them: a process that writes straight to Redis."""

from __future__ import annotations

import time

from benchmarks.gateway.pace import Pace, chunk
from benchmarks.project import Project, make_project
from celery_streams.writing.writer import Writer

_project: Project | None = None
_writers: list[Writer] = []
_numbers: list[int] = []


def create(url: str, sessions: list[str]) -> list[str]:
    """Write the first chunk of each session; returns where the gateway serves them."""
    global _project
    _project = make_project(url)
    _writers[:] = [_project.streams.session(each).out.writer() for each in sessions]
    _numbers[:] = [1] * len(sessions)
    for writer in _writers:
        writer.append(chunk(0, time.monotonic_ns()))
    return [f"/v1/stream/sessions/{each}/out" for each in sessions]


def run(pace: Pace) -> float:
    """Write at this pace; returns the CPU seconds that took."""
    cpu, start = time.process_time(), time.monotonic_ns()
    for due, stream in pace.schedule():
        ahead = start + due - time.monotonic_ns()
        if ahead > 0:
            time.sleep(ahead / 1e9)
        _writers[stream].write(chunk(_numbers[stream], time.monotonic_ns()))
        _numbers[stream] += 1
    for writer in _writers:
        writer.flush()
    return time.process_time() - cpu


def leave() -> None:
    """Let go of the server."""
    global _project
    _writers.clear()
    if _project is not None:
        _project.close()
    _project = None
