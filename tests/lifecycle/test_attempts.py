"""Attempts of one run: each continues the last, none writes after its successor has."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from celery_streams import Slot, StreamFenced
from celery_streams.contracts import Attempt
from celery_streams.writing.writers import AttemptWriters
from tests.lifecycle.client import APP, Client
from tests.servers import ValkeyProcess
from tests.servers.children import eventually
from tests.workers import worker


def test_a_retried_task_continues_exactly_where_its_stream_ends(
    prefork: Client, times: Callable[[int, int], int]
) -> None:
    """``head().end`` of the next attempt counts every chunk that the last one wrote."""
    for _ in range(times(10, 200)):
        run_id, attempts = prefork.run("again", 400)
        assert attempts == 3
        chunks = prefork.chunks(run_id)
        assert [chunk["number"] for chunk in chunks] == list(range(400))
        assert [chunk["attempt"] for chunk in chunks] == [1] * 200 + [2] * 100 + [3] * 100
        assert prefork.end(run_id) == "SUCCESS"


def test_autoretry_counts_attempts_and_keeps_the_stream_open(prefork: Client) -> None:
    """``attempt`` is right after each retry that Celery makes by itself."""
    run_id, attempts = prefork.run("automatic")
    assert attempts == 3
    assert prefork.chunks(run_id) == [1, 2, 3]
    assert prefork.end(run_id) == "SUCCESS"
    assert prefork.streams.head(run_id).epoch == 3


def test_the_last_of_too_many_retries_ends_the_stream(prefork: Client) -> None:
    """RETRY keeps a stream open; giving up closes it as FAILURE."""
    result = prefork.send("hopeless")
    with pytest.raises(ValueError, match="never works"):
        result.get(timeout=30)
    assert prefork.chunks(result.id) == [0, 1]
    assert prefork.end(result.id) == "FAILURE"


@pytest.mark.parametrize(("how", "tail"), [("single", 3), ("chain", 3), ("group", 0)])
def test_a_replaced_task_hands_its_stream_on_without_a_gap(
    prefork: Client, how: str, tail: int, times: Callable[[int, int], int]
) -> None:
    """The replacement's message leaves only when all of the replaced task's chunks are durable."""
    for _ in range(times(10, 200)):
        run_id, result = prefork.run("replaced", how)
        assert result == (3 if tail else [1, 2])
        expected = [["replaced", number] for number in range(500)]
        expected += [[run_id, number] for number in range(tail)]
        assert prefork.chunks(run_id) == expected
        assert prefork.end(run_id) == "SUCCESS"


def test_a_lost_process_s_message_comes_back_as_the_next_attempt(prefork: Client) -> None:
    """``acks_late`` and ``reject_on_worker_lost``: the run goes on, and counts."""
    run_id, attempt = prefork.run("survivor")
    assert attempt == 2
    assert prefork.chunks(run_id) == [1, 2]
    assert prefork.end(run_id) == "SUCCESS"


def test_a_message_that_is_put_back_leaves_the_stream_open(prefork: Client) -> None:
    """``Reject(requeue=True)`` is followed by another attempt, ``requeue=False`` by nothing."""
    run_id, attempt = prefork.run("rejected", True)
    assert attempt == 2
    assert prefork.chunks(run_id) == ["rejected"] * 2
    assert prefork.end(run_id) == "SUCCESS"
    result = prefork.send("rejected", False)
    assert prefork.end(result.id) in ("REJECTED", "FAILURE")
    assert prefork.chunks(result.id) == ["rejected"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_zombie_cannot_write_or_end_what_its_successor_has_taken(
    lifecycle_server: ValkeyProcess,
    times: Callable[[int, int], int],
    tmp_path: Path,
    finished: bool,
) -> None:
    """Attempt 1 goes on after attempt 2 has written, or even finished.

    ::

        time 0  Attempt 1 writes a chunk; its process is stopped (SIGSTOP).
        time 1  The broker delivers its message again: attempt 2 writes (and finishes the run).
        time 2  Attempt 1 goes on: its writes are refused, its end changes nothing.
    """
    queue = f"zombies-{finished}"
    with (
        worker(APP, lifecycle_server, queue=queue, concurrency=2) as running,
        Client.of(running) as client,
    ):
        running.wait_children()
        for number in range(times(4, 40)):
            offset, go = len(running.log.text), tmp_path / str(number)
            result = client.send("zombie", 50, str(go), queue=queue)
            (first,) = client.wait_chunks(result.id, 1)
            process = psutil.Process(first["pid"])
            eventually(lambda it=process: it.status() == psutil.STATUS_STOPPED, "SIGSTOP")
            client.deliver_again(result.id)
            before = client.wait_chunks(result.id, 51)
            assert [chunk["attempt"] for chunk in before] == [1] + [2] * 50
            if finished:
                go.touch()
                assert client.end(result.id) == "SUCCESS"
            process.resume()
            refusal = "has ended (SUCCESS)" if finished else "has taken over"
            running.log.wait_for(f"{refusal}", after=offset)
            running.log.wait_for(f"[{result.id}] raised unexpected", after=offset)
            if not finished:
                running.log.wait_for("an earlier attempt of run", after=offset)
                assert client.closed(result.id) is None
                go.touch()
            assert client.end(result.id) == "SUCCESS"
            assert client.chunks(result.id) == before
            assert client.streams.head(result.id).epoch == 2


def test_attempts_at_once_never_interleave(
    prefork: Client, times: Callable[[int, int], int]
) -> None:
    """After the later attempt's first chunk, the earlier one gets none in."""
    streams = prefork.streams
    for _ in range(times(20, 500)):
        run_id = uuid.uuid4().hex
        slot = Slot.run(run_id)
        old, new = (_writers(streams, Attempt(run_id, f"a{n}", generation=n)) for n in (0, 1))
        for number in range(20):
            old_writer, new_writer = old.writer(slot), new.writer(slot)
            with suppress(StreamFenced):
                old_writer.write(["old", number])
            if number >= 5:
                new_writer.write(["new", number])
        new.drain(10)
        with pytest.raises(StreamFenced, match="must stop"):
            old.writer(slot).append("late")
        order = [who for who, _ in prefork.chunks(run_id)]
        assert sum(a != b for a, b in pairwise(order)) <= 1
        assert order.count("new") == 15


def test_a_zombie_that_has_not_written_cannot_fence(prefork: Client) -> None:
    """A first delivery that wakes up late may not claim what a redelivery has written to."""
    run_id = uuid.uuid4().hex
    slot = Slot.run(run_id)
    zombie = _writers(prefork.streams, Attempt(run_id, "zombie"))
    successor = _writers(prefork.streams, Attempt(run_id, "next", redelivered=True))
    assert successor.writer(slot).append("successor") == 0
    with pytest.raises(StreamFenced):
        zombie.writer(slot).append("zombie")
    assert successor.writer(slot).append("successor") == 1
    registry = prefork.streams.runtime.registry
    assert registry.finish(Attempt(run_id, "zombie"), "FAILURE") == "SUPERSEDED"
    assert prefork.closed(run_id) is None
    assert registry.finish(Attempt(run_id, "next", redelivered=True), "SUCCESS") == "OK"
    assert prefork.closed(run_id) == "SUCCESS"
    assert prefork.chunks(run_id) == ["successor"] * 2


def _writers(streams: Any, attempt: Attempt) -> AttemptWriters:
    runtime = streams.runtime
    return AttemptWriters(
        attempt, runtime.open_channel, runtime.store, runtime.cache, runtime.settings
    )
