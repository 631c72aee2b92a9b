"""The worker helper itself: real processes that start, answer, die and leave nothing behind."""

from __future__ import annotations

import psutil
import pytest

from tests.servers import ValkeyProcess
from tests.workers import Pool, worker

_APP = "tests.apps.plain_app"


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "eventlet", "solo"])
def test_a_worker_of_every_pool_runs_a_task(valkey: ValkeyProcess, pool: Pool) -> None:
    """Ready means ready: a task sent right after the start is answered."""
    valkey.flush()
    with worker(_APP, valkey, pool=pool) as running:
        assert running.app.send_task(f"{_APP}.add", (1, 2)).get(timeout=20) == 3


def test_a_killed_child_is_replaced(valkey: ValkeyProcess) -> None:
    """``kill_child`` hits the process that runs tasks; the parent starts another."""
    valkey.flush()
    with worker(_APP, valkey, concurrency=1) as running:
        victim = running.app.send_task(f"{_APP}.pid").get(timeout=20)
        running.kill_child(victim)
        successor = running.app.send_task(f"{_APP}.pid").get(timeout=20)
        assert successor != victim


def test_a_killed_worker_leaves_no_process_and_starts_again(valkey: ValkeyProcess) -> None:
    """``kill`` takes the pool along, and the same worker can be started once more."""
    valkey.flush()
    with worker(_APP, valkey) as running:
        children = running.wait_children()
        running.kill()
        assert not any(psutil.pid_exists(child.pid) for child in children)
        running.start()
        assert running.app.send_task(f"{_APP}.add", (2, 2)).get(timeout=20) == 4
