"""Every run's streams end, however the run does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError

from celery_streams import RunFinished, Slot
from tests.lifecycle.client import APP, Client
from tests.servers import ValkeyProcess
from tests.servers.children import eventually
from tests.workers import worker


def test_a_task_that_is_ignored_ends_its_stream(prefork: Client) -> None:
    """``Ignore`` leaves no result, but the stream is closed."""
    result = prefork.send("ignored")
    assert prefork.end(result.id) == "IGNORED"
    assert prefork.chunks(result.id) == ["ignored"]


def test_a_soft_time_limit_loses_nothing_that_was_accepted(
    lifecycle_server: ValkeyProcess, times: Callable[[int, int], int]
) -> None:
    """The exception may strike anywhere in a hot write loop; the stream goes on and ends well."""
    with (
        worker(APP, lifecycle_server, queue="soft", concurrency=2) as running,
        Client.of(running) as client,
    ):
        results = [client.send("soft", queue="soft") for _ in range(times(4, 60))]
        for result in results:
            accepted = result.get(timeout=60 + len(results))
            chunks = client.chunks(result.id)
            # The chunk whose write() was interrupted may be there, or not.
            assert chunks[:accepted] == list(range(accepted))
            assert chunks[accepted:] in (["cleanup"] * 10, [accepted] + ["cleanup"] * 10)
            assert client.end(result.id) == "SUCCESS"


@pytest.mark.parametrize("retries", [0, 1])
def test_a_hard_time_limit_ends_the_stream(prefork: Client, retries: int) -> None:
    """The surviving parent closes it, also for a later attempt of the run."""
    result = prefork.send("hard", retries)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    assert prefork.end(result.id) == "FAILURE"
    assert prefork.chunks(result.id) == ["written"] * (1 + retries)


@pytest.mark.parametrize("task", ["suicide", "retry_then_die"])
def test_a_killed_process_ends_the_stream(prefork: Client, task: str) -> None:
    """SIGKILL of the pool process: the parent knows, also of a later attempt."""
    result = prefork.send(task)
    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
    assert prefork.end(result.id) == "FAILURE"
    assert len(prefork.chunks(result.id)) == (1 if task == "suicide" else 2)


def test_a_revoked_task_that_never_started_cannot_be_opened(
    prefork: Client, lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """A stream opened by somebody else is closed; nobody can open another."""
    with (
        worker(APP, lifecycle_server, queue="revoke", concurrency=1) as running,
        Client.of(running) as client,
    ):
        go = tmp_path / "go"
        blocker = client.send("wait_for", str(go), queue="revoke")
        client.wait_chunks(blocker.id, 1)
        result = client.send("count", 3, queue="revoke")
        writer = client.streams.write_to(result.id, create=True)
        writer.append("before it starts")
        result.revoke()
        eventually(lambda: result.id in _revoked(client), "the revocation")
        go.touch()
        with pytest.raises(TaskRevokedError):
            result.get(timeout=30)
        assert client.end(result.id) == "REVOKED"
        assert client.chunks(result.id) == ["before it starts"]
        with pytest.raises(RunFinished, match="REVOKED"):
            client.streams.write_to(result.id, "other")


def test_terminating_a_task_ends_its_stream(prefork: Client, tmp_path: Path) -> None:
    """``revoke(terminate=True)`` kills the process; the parent closes what it had opened."""
    result = prefork.send("wait_for", str(tmp_path / "never"), 5)
    prefork.wait_chunks(result.id, 5)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    assert prefork.end(result.id) == "REVOKED"
    assert prefork.chunks(result.id) == list(range(5))


def test_the_streams_of_a_lost_host_end_when_its_lease_does(
    lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """Nobody is left to say so: whoever waits for the run looks at the lease."""
    timeout = 2.0
    with (
        worker(
            APP,
            lifecycle_server,
            queue="host",
            concurrency=1,
            env={"CELERY_STREAMS_ORPHAN_TIMEOUT": str(timeout)},
        ) as running,
        Client.of(running, orphan_timeout=timeout) as client,
    ):
        result = client.send("wait_for", str(tmp_path / "never"), 3, queue="host")
        client.wait_chunks(result.id, 3)
        began = time.monotonic()
        eventually(
            lambda: time.monotonic() - began > 1.5 * timeout, "longer than a lease", timeout=10
        )
        assert client.streams.end_if_over(result.id) is None, "its lease is renewed"
        killed = time.monotonic()
        running.kill()
        assert list(client.streams.read(result.id, timeout=20)) == [0, 1, 2]
        assert timeout / 2 < time.monotonic() - killed < 3 * timeout
        assert client.closed(result.id) == "LOST"
        assert client.streams.end_if_over(result.id) == "LOST"


def test_the_lease_of_a_late_acknowledging_task_outlasts_the_broker_s_patience(
    prefork: Client, lifecycle_server: ValkeyProcess, tmp_path: Path
) -> None:
    """Its message may come back after the visibility timeout (an hour); others' never do."""
    go = tmp_path / "go"
    client: Any = lifecycle_server.client()
    layout = prefork.streams.runtime.layout
    left, results = [], []
    for task in (("wait_for", str(go)), ("hard",)):  # in turn: the second has a second to live
        results.append(result := prefork.send(*task))
        prefork.wait_chunks(result.id, 1)
        now, microseconds = client.time()
        lease = client.hget(layout.owner(Slot.run(result.id)), "lease")
        left.append(int(lease) / 1000 - now - microseconds / 1e6)
    go.touch()
    early, late = results
    lease, grace = prefork.streams.settings.orphan_timeout, 3600
    assert lease / 2 < left[0] <= lease
    assert grace + lease / 2 < left[1] <= grace + lease
    assert prefork.end(early.id) == "SUCCESS"
    assert prefork.end(late.id) == "FAILURE"


def test_a_reader_asks_the_result_backend_how_a_silent_run_ended(prefork: Client) -> None:
    """A stream that was opened for a task which never wrote ends when somebody looks."""
    task_id = f"silent-{os.getpid()}-{time.monotonic_ns()}"
    prefork.streams.write_to(task_id, create=True).append("from outside")
    result = prefork.app.send_task(f"{APP}.pid", task_id=task_id)
    result.get(timeout=30)
    assert list(prefork.streams.read(task_id, timeout=20)) == ["from outside"]
    assert prefork.closed(task_id) == "SUCCESS"


def _revoked(client: Client) -> list[Any]:
    replies = client.app.control.inspect(
        destination=[f"{client.worker.name}@localhost"], timeout=0.3
    ).revoked()
    return [task for tasks in (replies or {}).values() for task in tasks]
