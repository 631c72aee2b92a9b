"""SUCCESS means durable; a store that is slow, cut off or full fails a task, and never hangs it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery import Celery

from celery_streams import Slot, StreamClosed, Streams
from celery_streams.redis.layout import Layout
from tests.lifecycle.client import APP, Client, chunks_of
from tests.servers import Proxy, ValkeyProcess
from tests.servers.children import eventually
from tests.workers import worker

STEPS = "tests.lifecycle.step_app"


@contextmanager
def _worker_behind(
    proxy: Proxy, server: ValkeyProcess, queue: str, *, module: str = APP, **settings: Any
) -> Iterator[Client]:
    """A worker that reaches the store, and only the store, through ``proxy``."""
    env = {f"CELERY_STREAMS_{name.upper()}": str(value) for name, value in settings.items()}
    with (
        worker(
            module,
            server,
            queue=queue,
            concurrency=1,
            env=env,
            streams_url=server.url_for(port=proxy.port),
        ) as running,
        Client.of(running, url=server.url) as client,
    ):
        yield client


def test_success_waits_for_a_slow_store(lifecycle_server: ValkeyProcess) -> None:
    """With every reply 100 ms late, whoever sees SUCCESS finds all chunks, at once."""
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(proxy, lifecycle_server, "slow") as client,
    ):
        proxy.delay(0.1, "down")
        for size in (1, 500, 5000):
            run_id, _ = client.run("count", size, queue="slow")
            assert len(client.chunks(run_id)) == size
            assert client.end(run_id) == "SUCCESS"


def test_a_drain_that_fails_fails_the_task_and_says_what_is_missing(
    lifecycle_server: ValkeyProcess,
) -> None:
    """The error names the stream and counts the chunks; the next task is as good as new."""
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(proxy, lifecycle_server, "cut", drain_timeout=3, retry_timeout=30) as client,
    ):
        client.run("count", 1, queue="cut")
        proxy.refuse()
        began = time.monotonic()
        result = client.send("count", 7, queue="cut")
        with pytest.raises(Exception, match=rf"7 chunks of runs/{result.id}/default") as raised:
            result.get(timeout=30)
        assert type(raised.value).__name__ == "WriteTimeout"
        assert time.monotonic() - began < 15
        proxy.accept()
        run_id, _ = client.run("count", 3, queue="cut")
        assert len(client.chunks(run_id)) == 3
        # The end that could not be recorded then is recorded now.
        assert client.end(run_id) == "SUCCESS"


def test_a_store_that_stays_away_ends_the_writer_within_the_retry_timeout(
    lifecycle_server: ValkeyProcess,
) -> None:
    """Whichever bound comes first; with ``drain_failure=log`` the task succeeds all the same."""
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(
            proxy,
            lifecycle_server,
            "log",
            drain_timeout=20,
            retry_timeout=1,
            drain_failure="log",
        ) as client,
    ):
        client.run("count", 1, queue="log")
        proxy.refuse()
        began = time.monotonic()
        run_id, result = client.run("count", 7, queue="log")
        assert result == 7
        assert time.monotonic() - began < 10
        log = client.worker.log.wait_for(f"[{run_id}] are not durable")
        assert f"7 chunks of runs/{run_id}/default are not durable" in log
        assert "gave up after" in log
        proxy.accept()


def test_a_dead_store_slows_a_task_to_a_bound_and_takes_bounded_memory(
    lifecycle_server: ValkeyProcess,
) -> None:
    """A full buffer blocks ``write()``, then ``WriteTimeout``; what is held stays small."""
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(
            proxy,
            lifecycle_server,
            "dead",
            buffer_bytes=1_000_000,
            write_timeout=1,
            drain_timeout=1,
        ) as client,
    ):
        client.run("outlives", 20, 10_000, queue="dead")
        (child,) = client.worker.wait_children()
        before = psutil.Process(child.pid).memory_info().rss
        proxy.stall()
        began = time.monotonic()
        result = client.send("outlives", 10_000, 10_000, queue="dead")  # 100 MB
        with pytest.raises(Exception, match="no room in the write buffer") as raised:
            result.get(timeout=30)
        assert type(raised.value).__name__ == "WriteTimeout"
        assert time.monotonic() - began < 15
        assert psutil.Process(child.pid).memory_info().rss - before < 20_000_000
        proxy.resume()
        run_id, _ = client.run("outlives", 200, 10_000, queue="dead")
        assert len(client.chunks(run_id)) == 200
        assert client.end(run_id) == "SUCCESS"
        # The stream of the one that failed ends, or there is none: its chunks came to nothing.
        assert len(list(client.streams.read(result.id, timeout=30))) < 10_000
        assert client.closed(result.id) in ("FAILURE", None)


def test_a_stream_whose_opening_arrives_after_its_runs_end_stays_shut(
    lifecycle_server: ValkeyProcess,
) -> None:
    """``initialize`` is on its way while its task fails, and arrives when the end is recorded.

    Held back on one connection and overtaken on another, it must find the run over: or the stream
    would be open until the lease ends it as LOST.
    """
    run_id = uuid.uuid4().hex
    slot = Slot.run(run_id)
    live = Layout("cs").live(slot)
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(proxy, lifecycle_server, "late", drain_timeout=1, retry_timeout=1) as client,
        redis.Redis.from_url(lifecycle_server.url) as direct,
        direct.pubsub(ignore_subscribe_messages=True) as announced,
    ):
        announced.ssubscribe(live)
        opening = proxy.hold(live.encode())
        result = client.send("count", 3, task_id=run_id, queue="late")
        assert opening.caught.wait(30)
        with pytest.raises(Exception, match="3 chunks"):
            result.get(timeout=30)
        eventually(lambda: client.streams.runtime.registry.describe(run_id).state, "its end")
        proxy.release(opening)
        eventually(
            lambda: (announced.get_message(timeout=1) or {}).get("data") == b"o",
            "the arrival of what was held back",
        )
        assert client.streams.runtime.registry.describe(run_id).keys == ()
        assert list(client.streams.read(run_id, timeout=10)) == []


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
def test_a_run_whose_chunks_are_lost_does_not_succeed_by_a_retry(
    lifecycle_server: ValkeyProcess, told: bool
) -> None:
    """``self.retry()`` fails the task in place of sending a successor that knows nothing of them.

    Unless the task retries because it was told: then it knows that they have to be written again.
    """
    with (
        Proxy(lifecycle_server.port) as proxy,
        _worker_behind(
            proxy, lifecycle_server, "lossy", module=STEPS, drain_timeout=1, retry_timeout=1
        ) as client,
    ):
        client.run("count", 1, queue="lossy")
        proxy.refuse()
        result = client.send("retries_unheard", told, queue="lossy")
        if told:
            assert result.get(timeout=30) == "done"
        else:
            with pytest.raises(Exception, match="1 chunks of") as raised:
                result.get(timeout=30)
            assert type(raised.value).__name__ in ("WriteTimeout", "StoreUnavailable")


@pytest.mark.parametrize("opened", [False, True], ids=["unopened", "opened"])
def test_a_thread_that_outlives_its_task_writes_nothing(
    lifecycle_server: ValkeyProcess, tmp_path: Path, opened: bool
) -> None:
    """It would open a stream that nobody ends, or be refused where nobody sees it."""
    with (
        worker(STEPS, lifecycle_server, queue="threads", concurrency=1) as running,
        Client.of(running) as client,
    ):
        run_id, _ = client.run("leaves_a_thread", str(tmp_path), opened, queue="threads")
        if opened:
            assert client.end(run_id) == "SUCCESS"
        (tmp_path / "go").touch()
        outcome = tmp_path / "outcome"
        eventually(outcome.exists, "what the thread was told")
        assert outcome.read_text().startswith("OutsideTask: the task ")
        with client.streams.read(run_id, timeout=20) as reader:
            assert list(reader) == (["from the task"] if opened else [])
        assert reader.closed == "SUCCESS"


@pytest.mark.parametrize("where", ["another run", "session"])
def test_what_a_task_writes_through_the_app_s_own_writers_is_durable_at_its_success(
    where: str,
) -> None:
    """``streams.write_to()`` and ``session().out.writer()`` are drained as ``self.streams`` is:
    with the store stopped the task fails, and says which chunk is missing.
    """
    app = Celery(f"own writers {where}", set_as_current=False)
    with ValkeyProcess() as store:
        streams = Streams(
            app, url=store.url, secret="x", socket_timeout=0.5, retry_timeout=1, drain_timeout=2
        )

        @app.task(name="writes", shared=False)
        def writes(stop: bool) -> None:
            if where == "session":
                writer = streams.session("s").out.writer()
            else:
                writer = streams.write_to("other run", create=True)
            if stop:
                store.pause()
            writer.write("accepted")

        assert app.tasks["writes"].apply((False,)).state == "SUCCESS"
        slot = Slot.session("s", "out") if where == "session" else Slot.run("other run")
        assert chunks_of(streams, slot) == ["accepted"]
        failed = app.tasks["writes"].apply((True,))
        store.resume()
        assert failed.state == "FAILURE"
        assert f"1 chunks of {slot} are not durable" in str(failed.result)
        streams.close()


def test_a_stream_that_ended_does_not_end_the_app_s_next_writer_in_the_same_task(
    valkey: ValkeyProcess,
) -> None:
    """In a task the app's own writers share a buffer, until it has ended: a stream that was
    deleted and opened again takes chunks again; what was lost still fails the task.
    """
    app = Celery("replaced writers", set_as_current=False)
    streams = Streams(app, url=valkey.url, secret="x")
    store, slot = streams.runtime.store, Slot.session("s", "out")

    @app.task(name="goes on", shared=False)
    def goes_on(lose: bool) -> list[int]:
        channel = streams.session("s").out
        offsets = [channel.append("a")]
        channel.close()
        if lose:
            channel.writer().write("lost")
            streams.session("other").out.append("later")
        with pytest.raises(StreamClosed):
            channel.append("refused")
        store.delete(slot)
        return [*offsets, channel.append("b")]

    assert app.tasks["goes on"].apply((False,)).result == [0, 0]
    store.delete(slot)
    lost = app.tasks["goes on"].apply((True,))
    assert lost.state == "FAILURE"
    assert isinstance(lost.result, StreamClosed)
    assert chunks_of(streams, slot) == ["b"]
    streams.close()
