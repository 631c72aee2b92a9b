"""What the result backend says of runs: asked within a bound, by one thread, for everybody."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from celery import Celery, states

from celery_streams import ReadTimeout, Streams
from celery_streams.runs.results import ResultStates
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

_THREAD = "celery-streams-results"


@pytest.fixture
def backend() -> Iterator[ValkeyProcess]:
    """A server of the test's own, so that it can be frozen."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture
def app(backend: ValkeyProcess) -> Iterator[Celery]:
    app = Celery("results", set_as_current=False)
    app.conf.update(result_backend=backend.url)
    yield app
    backend.resume()
    app.close()


def _threads() -> int:
    return sum(thread.name == _THREAD for thread in threading.enumerate())


def test_a_frozen_result_backend_does_not_hold_a_reader_beyond_its_timeout(
    valkey: ValkeyProcess, backend: ValkeyProcess, app: Celery
) -> None:
    """Celery itself would wait for two minutes, each time the idle reader asks."""
    streams = Streams(app, url=valkey.url, secret="x", recheck_interval=0.2, socket_timeout=0.5)
    assert app.AsyncResult("x").state == states.PENDING  # connects
    backend.pause()
    began = time.monotonic()
    with pytest.raises(ReadTimeout):
        list(streams.read(uuid.uuid4().hex, timeout=2))
    assert time.monotonic() - began < 6
    backend.resume()
    streams.close()
    eventually(lambda: _threads() == 0, "the end of the thread")


def test_questions_do_not_pile_up_while_the_backend_hangs(
    backend: ValkeyProcess, app: Celery
) -> None:
    """One thread waits; who asks meanwhile is told nothing, soon at once; then all goes on."""
    results = ResultStates(app, timeout=0.3)
    run_id = uuid.uuid4().hex
    app.backend.store_result(run_id, None, states.SUCCESS)
    assert results.state(run_id) == states.SUCCESS
    backend.pause()
    asking = [threading.Thread(target=results.state, args=(run_id,)) for _ in range(20)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(5)
    assert not any(thread.is_alive() for thread in asking)
    began = time.monotonic()
    assert [results.state(run_id) for _ in range(20)] == [None] * 20
    assert time.monotonic() - began < 0.3
    assert _threads() == 1
    backend.resume()
    eventually(lambda: results.state(run_id) == states.SUCCESS, "an answer")
    results.close()
    eventually(lambda: _threads() == 0, "the end of the thread")
    assert results.state(run_id) == states.SUCCESS  # another one
    results.close()


def test_without_a_result_backend_nothing_is_started() -> None:
    """And nothing is known."""
    app = Celery("no results", set_as_current=False)
    results = ResultStates(app, timeout=5)
    assert results.state("run") is None
    assert _threads() == 0


def test_a_forked_child_asks_by_a_thread_of_its_own(valkey: ValkeyProcess, app: Celery) -> None:
    """The parent's thread does not exist there."""
    streams = Streams(app, url=valkey.url, secret="x")
    run_id = uuid.uuid4().hex
    app.backend.store_result(run_id, None, states.SUCCESS)
    assert streams.end_if_over(run_id) == states.SUCCESS
    child = os.fork()
    if child == 0:
        os._exit(0 if streams.end_if_over(run_id) == states.SUCCESS else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    streams.close()
