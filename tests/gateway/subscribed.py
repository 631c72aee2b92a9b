"""What the tests of tasks as subscribers share: chunks to process, and which have been."""

from __future__ import annotations

from typing import Any

from tests.workers import Worker

APP = "tests.apps.subscribed_app"


def noted(client: Any) -> dict[str, int]:
    """How often each chunk was processed: ``path#number``."""
    return {key.decode(): int(count) for key, count in client.hgetall("noted").items()}


def produce(running: Worker, count: int) -> dict[str, int]:
    """Let a run write chunks; they are to be processed once each."""
    result = running.app.send_task(f"{APP}.produce", (count,))
    result.get(timeout=20)
    return {f"runs/{result.id}/default#{number}": 1 for number in range(count)}
