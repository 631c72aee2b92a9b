"""A server that cannot do its work: a clear error, within a bound, and nothing half-written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import redis
import redis.exceptions as rx

from celery_streams.contracts import Credentials
from celery_streams.errors import ConfigurationError, StoreUnavailable, StreamError
from celery_streams.slots import Slot
from celery_streams.stores.redis_async import AsyncRedisStore
from tests.servers import Cluster, Proxy, RedisProcess, ServerProcess, ValkeyProcess
from tests.servers.children import free_port
from tests.stores.faults.bench import Bench, Writer, delivered
from tests.stores.faults.conftest import Open

SLOT = Slot.run("run")


@pytest.fixture(params=[ValkeyProcess, RedisProcess])
def kind(request: pytest.FixtureRequest) -> type[ServerProcess]:
    """Servers of each kind, to be configured by the test."""
    if request.param is RedisProcess:
        request.getfixturevalue("redis7")  # skips or fails where it is missing
    return request.param


def uses(bench: Bench) -> list[Callable[[], object]]:
    """Every operation, as a writer, a reader, and an asyncio reader do it."""
    credentials = Credentials(SLOT, "mint", "token", 1e12)
    writer = Writer(bench, SLOT, delivered(SLOT.owner), credentials)

    async def follow(store: AsyncRedisStore) -> None:
        async for _ in store.follow(SLOT, 0, idle=0.01):
            pass

    return [
        lambda: bench.authority.initialize(SLOT),
        lambda: writer.append(1),
        writer.close,
        lambda: bench.store.read(SLOT, 0),
        lambda: bench.store.head(SLOT),
        lambda: next(bench.store.follow(SLOT, 0, idle=0.01)),
        lambda: bench.store.delete(SLOT),
        lambda: bench.with_async_store(follow),
    ]


def assert_all_raise(bench: Bench, kind: type[StreamError], *fragments: str) -> None:
    for use in uses(bench):
        started = time.monotonic()
        with pytest.raises(StreamError) as caught:
            use()
        assert type(caught.value) is kind, caught.value
        assert all(fragment in str(caught.value) for fragment in fragments), caught.value
        assert time.monotonic() - started < 2.0


def test_nobody_listens_at_the_address(open_bench: Open) -> None:
    """Single server and cluster; making the store is not an error yet."""
    for scheme in ("redis", "redis+cluster"):
        bench = open_bench(f"{scheme}://127.0.0.1:{free_port()}")
        assert_all_raise(bench, StoreUnavailable, "cannot reach")


def test_a_server_that_accepts_and_never_answers(server: ServerProcess, open_bench: Open) -> None:
    """Every wait ends with the timeouts of the settings."""
    with Proxy(server.port) as proxy:
        proxy.stall()
        bench = open_bench(server.url_for(port=proxy.port), socket_timeout=0.1, connect_timeout=0.1)
        assert_all_raise(bench, StoreUnavailable)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_wrong_password(kind: type[ServerProcess], open_bench: Open, scheme: str) -> None:
    """Says which setting to look at, and does not show what was tried."""
    options = {"cluster-enabled": "yes"} if "cluster" in scheme else {}
    with kind(requirepass="right", options=options) as server:
        for url in (server.url_for(password="hunter2"), server.url_for("nobody", "hunter2")):
            bench = open_bench(url.replace("redis", scheme, 1))
            for use in uses(bench):
                with pytest.raises(ConfigurationError, match="CELERY_STREAMS_URL") as caught:
                    use()
                assert "hunter2" not in str(caught.value)


def test_a_password_that_is_missing(kind: type[ServerProcess], open_bench: Open) -> None:
    """NOAUTH is a matter of configuration as well."""
    with kind(requirepass="right") as server:
        assert_all_raise(open_bench(server.url_for(password="")), ConfigurationError)


def test_a_user_without_permissions(kind: type[ServerProcess], open_bench: Open) -> None:
    """It may connect, and nothing else; the message says what it needs."""
    with kind(users={"poor": ">secret ~cs/* &cs/* +ping +client"}) as server:
        bench = open_bench(server.url_for("poor", "secret"))
        assert_all_raise(bench, ConfigurationError, "permission", "@scripting")


@pytest.mark.parametrize("lacking", ["~other* &cs/*", "~cs/* &other*", "~cs/* &cs/* -xadd"])
def test_a_user_that_lacks_one_permission_writes_nothing(
    kind: type[ServerProcess], open_bench: Open, lacking: str
) -> None:
    """Keys, channels, a command of the script: no chunk is there afterwards."""
    with kind(users={"poor": f">secret +@all {lacking}"}) as server:
        poor, rich = open_bench(server.url_for("poor", "secret")), open_bench(server.url)
        writer = rich.writer(rich.slot())
        with pytest.raises(ConfigurationError, match="permission"):
            _written(poor, writer.slot)
        assert rich.values(writer.slot) == []


def _written(bench: Bench, slot: Slot) -> None:
    bench.writer(slot).append(1)


def test_a_user_with_the_documented_permissions_can_do_everything(
    kind: type[ServerProcess], open_bench: Open
) -> None:
    """What the error message asks for is enough, also with an unusual password."""
    rules = ">p@ss:/?#[]w%rd ~cs/* &cs/* +@read +@write +@scripting +@pubsub +@connection +time"
    with kind(users={"writer": rules}) as server:
        bench = open_bench(server.url_for("writer", "p@ss:/?#[]w%rd"))
        writer = bench.writer(bench.slot())
        writer.append(1)
        writer.close()
        pages = list(bench.store.follow(writer.slot, 0, idle=1.0))
        assert pages[-1].head is not None
        assert pages[-1].head.closed == "CLOSED"


def test_a_read_only_replica(kind: type[ServerProcess], open_bench: Open) -> None:
    """Reading works; writing says that it is a replica."""
    with kind() as primary, kind(replicaof=primary) as replica:
        bench = open_bench(replica.url)
        assert bench.store.read(SLOT, 0).head is None
        for use in uses(bench)[:3]:
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                use()


def test_a_server_that_is_out_of_memory(kind: type[ServerProcess], open_bench: Open) -> None:
    """Nothing of the refused batch is written; what there is can be read; then it goes on."""
    with kind(maxmemory="8mb") as server:
        bench = open_bench(server.url)
        writer = bench.writer(bench.slot())
        big = "x" * 200_000
        with pytest.raises(StoreUnavailable, match="out of memory"):
            _until_refused(lambda: writer.append(big))
        head = bench.store.head(writer.slot)
        assert head.end == writer.seq > 0
        assert len(bench.values(writer.slot)) == head.end
        server.client().config_set("maxmemory", "100mb")
        assert writer.append(big).offset == head.end


def test_a_server_too_old_for_sharded_channels(kind: type[ServerProcess], open_bench: Open) -> None:
    """Opening a stream fails first of all, so that nothing is half-written."""
    with kind(rename_commands={"SPUBLISH": "", "SSUBSCRIBE": ""}) as server:
        bench = open_bench(server.url)
        with pytest.raises(ConfigurationError, match=r"too old.*7\.0"):
            bench.authority.initialize(SLOT)
        with pytest.raises(ConfigurationError, match="too old"):
            next(bench.store.follow(SLOT, 0, idle=0.01))
        assert server.client().dbsize() == 0


def test_a_server_that_is_busy(kind: type[ServerProcess], open_bench: Open) -> None:
    """Another moment may do: it is tried again."""
    with kind(options={"busy-reply-threshold": "1"}) as server:
        bench = open_bench(server.url)
        busy = threading.Thread(target=_run_forever, args=(server,))
        busy.start()
        with pytest.raises(StoreUnavailable, match=r"(?i)busy"):
            _until_refused(lambda: bench.store.read(SLOT, 0))
        server.client().execute_command("SCRIPT KILL")
        busy.join()
        assert bench.store.read(SLOT, 0).head is None


def _run_forever(server: ServerProcess) -> None:
    with redis.Redis.from_url(server.url) as client, suppress(rx.RedisError):
        client.eval("while true do end", 0)


def _until_refused(use: Callable[[], object]) -> None:
    for _ in range(10_000):
        use()


def test_a_cluster_addressed_as_a_single_server(cluster: Cluster, open_bench: Open) -> None:
    """And the other way round: the message says which scheme to use."""
    bench = open_bench(cluster.url.replace("+cluster", ""))
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
        _until_refused(lambda: bench.store.read(bench.slot(), 0))


def test_a_single_server_addressed_as_a_cluster(server: ServerProcess, open_bench: Open) -> None:
    """The message says which scheme to use."""
    bench = open_bench(server.url.replace("redis", "redis+cluster", 1))
    assert_all_raise(bench, ConfigurationError, "not a cluster")


def test_replicas_that_do_not_exist_are_reported(single: Bench, open_bench: Open) -> None:
    """The batch is there, but not acknowledged; sent again it is still not on a replica."""
    bench = open_bench(single.settings.url.get_secret_value(), wait_replicas=1, socket_timeout=1.0)
    writer = bench.writer(bench.slot())
    batch = writer.batch(1)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="CELERY_STREAMS_WAIT_REPLICAS"):
            writer.send(batch)
    assert bench.values(writer.slot) == [b"1"]


def test_tls_and_user_names_and_unix_sockets(open_bench: Open, redis7: RedisProcess) -> None:
    """Every URL form reaches the server; a certificate nobody trusts is refused."""
    with RedisProcess(tls=True, users={"me": ">secret ~* &* +@all"}) as server:
        _write_and_read(open_bench(server.url))
        _write_and_read(open_bench(server.url_for("me", "secret")))
        untrusted = open_bench(server.url.partition("?")[0])
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            untrusted.store.read(SLOT, 0)
    with ValkeyProcess(requirepass="secret") as server:
        path = server.directory / "socket"
        server.options = {"unixsocket": str(path)}
        server.restart()
        _write_and_read(open_bench(f"unix://:secret@{path}"))


def _write_and_read(bench: Bench) -> None:
    writer = bench.writer(bench.slot())
    writer.append(1)
    writer.close()
    assert bench.values(writer.slot) == [b"1"]
    pages = list(bench.store.follow(writer.slot, 0, idle=1.0))
    assert len(pages[0].entries) == 1

    async def follow(store: AsyncRedisStore) -> int:
        return sum([len(page.entries) async for page in store.follow(writer.slot, 0, idle=1.0)])

    assert bench.with_async_store(follow) == 1


def test_a_server_that_has_forgotten_the_scripts_learns_them_again(bench: Bench) -> None:
    """SCRIPT FLUSH, a restart, a failover: the source is sent once."""
    writer = bench.writer(bench.slot())
    for number in range(3):
        bench.link.client.script_flush()
        assert writer.append(number).offset == number
        bench.link.client.script_flush()
        assert len(bench.values(writer.slot)) == number + 1
