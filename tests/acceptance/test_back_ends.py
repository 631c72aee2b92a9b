"""``Streams(app, store=..., authority=...)``: back ends of the user's own, in a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_streams import Authority, ConfigurationError, ReadTimeout, Store, Streams
from celery_streams.contracts import AsyncStore
from celery_streams.stores.redis import RedisStore
from tests.acceptance.sqlite_streams import Database, SqliteAuthority, SqliteStore
from tests.servers import ValkeyProcess
from tests.workers import Worker, worker

_APP = "tests.acceptance.sqlite_app"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """The worker's and the client's SQLite file."""
    return Database(str(tmp_path_factory.mktemp("sqlite") / "streams"))


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    """For messages, results and the records of runs."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="module")
def running(server: ValkeyProcess, database: Database) -> Iterator[Worker]:
    """A prefork worker of the app."""
    with worker(_APP, server, concurrency=2, env={"TEST_SQLITE": database.path}) as running:
        yield running


@pytest.fixture(scope="module")
def streams(running: Worker, database: Database) -> Iterator[Streams]:
    """A client of it, with the same back ends."""
    store, authority = SqliteStore(database), SqliteAuthority(database)
    assert isinstance(store, Store)
    assert isinstance(authority, Authority)
    assert isinstance(store.for_event_loop(), AsyncStore)
    streams = Streams(
        running.app,
        store=store,
        authority=authority,
        url=running.streams_url,
        secret="test secret",
        recheck_interval=0.2,
    )
    yield streams
    streams.close()


def _send(running: Worker, task: str, *args: Any) -> Any:
    return running.app.send_task(f"{_APP}.{task}", args)


async def _everything(streams: Streams, run_id: str, **options: Any) -> tuple[list[Any], Any]:
    async with streams.aread(run_id, timeout=20, **options) as reader:
        return [chunk async for chunk in reader], reader.closed


def test_a_task_streams_to_a_store_of_the_user_s(
    running: Worker, streams: Streams, server: ValkeyProcess
) -> None:
    """Every chunk, the offsets, and the end of the run: for both readers."""
    result = _send(running, "count", 1000)
    live = streams.read(result.id, timeout=20)
    assert list(live) == list(range(1000))
    assert result.get(timeout=20) == 999
    assert live.closed == "SUCCESS"
    assert streams.head(result.id).end == 1000
    assert asyncio.run(_everything(streams, result.id)) == (list(range(1000)), "SUCCESS")
    assert asyncio.run(_everything(streams, result.id, offset=-3))[0] == [997, 998, 999]
    assert asyncio.run(_everything(streams, result.id, offset="now"))[0] == []
    assert not server.client().keys(f"cs/*{result.id}*/log/*"), "no chunk is in Redis"


def test_a_stream_that_its_task_closes_ends_at_once(running: Worker, streams: Streams) -> None:
    """``self.streams.close()`` is the store's; the run's own end comes later."""
    result = _send(running, "count", 10, True)
    assert asyncio.run(_everything(streams, result.id)) == (list(range(10)), "CLOSED")
    assert result.get(timeout=20) == 9


def test_a_retry_goes_on_where_the_store_says(running: Worker, streams: Streams) -> None:
    """The reader stays between the attempts, and sees one stream."""
    result = _send(running, "again", 400)
    assert list(streams.read(result.id, timeout=20)) == list(range(400))
    assert result.get(timeout=20) == 200
    assert streams.head(result.id).epoch == 2


def test_both_sides_write_and_read_live(running: Worker, streams: Streams) -> None:
    """A client's words to the task, the task's to the client; failure ends the reader."""
    result = _send(running, "echo", 3)

    async def main() -> None:
        async with streams.aread(result.id, timeout=20) as reader:
            said = streams.write_to(result.id, "said", create=True)
            for word in ("one", "two", "three"):
                await asyncio.to_thread(said.append, word)
                assert await anext(reader) == word.upper()
            with pytest.raises(StopAsyncIteration):
                await anext(reader)
            assert reader.closed == "FAILURE"

    asyncio.run(main())


def test_credentials_are_minted_once_and_again_when_revoked(
    streams: Streams, database: Database
) -> None:
    """The cache is in front of any authority; a refusal of any store makes it ask again."""
    session, before = streams.session("revoked"), database.count("initialize")
    writer = session.out.writer()
    for number in range(20):
        assert writer.append(number) == number
    assert database.count("initialize") == before + 1
    assert SqliteAuthority(database).revoke(session.out.slot) == 1
    assert writer.append(20) == 20
    assert database.count("initialize") == before + 2
    assert session.out.head().end == 21
    with pytest.raises(ReadTimeout):
        list(session.out.read(timeout=0.2))
    assert session.out.close().closed == "CLOSED"
    assert list(session.out.read(offset=18, timeout=20)) == [18, 19, 20]


class CountingStore(RedisStore):
    """The Redis store, and how many chunks it was given."""

    chunks = 0

    def append_many(self, appends: Any) -> Any:
        CountingStore.chunks += sum(append.batch.count for append in appends)
        return super().append_many(appends)


class SyncOnly:
    """A store without a side for event loops; all it has is another's."""

    def __init__(self, *of: Any) -> None:
        self._inner = RedisStore(*of)

    def __getattr__(self, name: str) -> Any:
        if name in ("for_event_loop", "for_gateway"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_a_class_is_a_factory_and_may_extend_the_redis_store(server: ValkeyProcess) -> None:
    """It is called with what the package's own store is made of, once in a process."""
    app = Celery("counting", set_as_current=False)
    streams = Streams(app, store=CountingStore, url=server.url, secret="test secret")

    @app.task(bind=True, name="write", shared=False)
    def write(self: Any) -> None:
        for number in range(100):
            self.streams.write(number)

    result = write.apply()
    assert result.get() is None
    assert list(streams.read(result.id, timeout=20)) == list(range(100))
    assert CountingStore.chunks == 100
    streams.close()


def test_a_fake_store_serves_the_tests_of_tasks(server: ValkeyProcess, database: Database) -> None:
    """``apply()`` without a result backend: the end of the run ends its readers all the same."""
    app = Celery("fake", set_as_current=False)
    store, authority = SqliteStore(database), SqliteAuthority(database)
    streams = Streams(app, store=store, authority=authority, url=server.url, recheck_interval=0.2)

    @app.task(bind=True, name="write", shared=False)
    def write(self: Any, fail: bool) -> None:
        self.streams.write("a")
        self.streams.write("b")
        if fail:
            raise ValueError("as asked")

    for fail, state in ((False, "SUCCESS"), (True, "FAILURE")):
        reader = streams.read(write.apply((fail,)).id, timeout=20)
        assert list(reader) == ["a", "b"]
        assert reader.closed == state
    streams.close()


def test_a_store_for_threads_only_says_so(server: ValkeyProcess) -> None:
    """``read`` works; ``aread`` names the method that is missing."""
    streams = Streams(store=SyncOnly, url=server.url, secret="test secret")
    streams.session("sync").out.append("there")
    streams.session("sync").out.close()
    assert list(streams.session("sync").out.read(timeout=20)) == ["there"]

    async def main() -> None:
        streams.session("sync").out.aread()

    with pytest.raises(ConfigurationError, match=r"SyncOnly .* for_event_loop\(\)"):
        asyncio.run(main())
    streams.close()
