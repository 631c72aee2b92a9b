"""How many commands does the server execute per 1000 chunks?"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import redis

from benchmarks import alternatives
from benchmarks.figures import Figure
from benchmarks.processes import together
from benchmarks.project import Project, make_project, write_and_flush
from benchmarks.stage import CHUNK, Stage


def measure(stage: Stage) -> list[Figure]:
    """All commands of a run, its beginning and end too: executed, and sent by clients.

    ``INFO commandstats`` also counts what scripts call; what ``MONITOR`` shows without the mark
    of a script was sent by a client. (It slows the server down, so that run is another one.)
    """
    stage.clear()
    chunks, paced = stage.size(100_000, 2000), stage.size(1000, 100)
    project = make_project(stage.url)
    project.run(lambda task: write_and_flush(task, 10))  # the server knows the scripts now
    name = alternatives.XADD
    theirs = _executed(stage, project, alternatives.xadd(stage.client, paced)) / paced * 1000
    figures = []
    for what, body, count in (
        ("chunks", lambda task: write_and_flush(task, chunks), chunks),
        ("single_chunks", lambda task: _append_one_by_one(task, paced), paced),
    ):
        executed = _executed(stage, project, body) / count * 1000
        sent = _sent(stage, project, body) / count * 1000
        figures += [
            Figure(f"commands_per_1000_{what}", executed, "commands", name, theirs),
            Figure(f"commands_sent_per_1000_{what}", sent, "commands", name, 1000),
        ]
    project.close()
    return figures


def _append_one_by_one(task: Any, count: int) -> None:
    """What a slow stream does: every chunk leaves alone."""
    for _ in range(count):
        task.streams.append(CHUNK)


def _executed(stage: Stage, project: Project, body: Callable[[Any], Any]) -> int:
    before = stage.calls()
    project.run(body)
    return sum(stage.calls().values()) - sum(before.values())


def _sent(stage: Stage, project: Project, body: Callable[[Any], Any]) -> int:
    done = uuid.uuid4().hex
    with together([(_monitor, (stage.url, done))]) as monitors:
        project.run(body)
        stage.client.echo(done)
        return int(monitors[0].result(timeout=60))


def _monitor(begin: Callable[[], Any], url: str, done: str) -> int:
    """Commands that clients send until one says ``done``."""
    sent = 0
    with redis.Redis.from_url(url, protocol=2) as client, client.monitor() as monitor:
        begin()
        for event in monitor.listen():
            if done in event["command"]:
                return sent
            sent += event["client_type"] != "lua"
    return sent
