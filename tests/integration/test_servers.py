"""The test servers and the proxy themselves: a fault must be the one that was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import redis.exceptions as rx
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import Cluster, Proxy, RedisProcess, ServerProcess, ValkeyProcess
from tests.servers.frames import Frames


@pytest.fixture
def proxy(valkey: ValkeyProcess) -> Iterator[Proxy]:
    """A proxy in front of the shared server, which is empty."""
    valkey.flush()
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def through(valkey: ValkeyProcess, proxy: Proxy) -> Iterator[redis.Redis]:
    """A client that goes through the proxy and never retries."""
    url = valkey.url_for(port=proxy.port)
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2) as client:
        yield client


def test_a_server_with_a_log_keeps_its_data_when_killed() -> None:
    """``aof`` makes a test of "killed and restarted" possible, on the same port."""
    with ValkeyProcess(aof=True, requirepass="p@ss/word") as server:
        server.client().set("a", "1")
        port = server.port
        server.kill()
        server.start()
        assert (server.port, server.client().get("a")) == (port, b"1")


def test_every_kind_of_server_is_empty_when_a_test_gets_it(server: ServerProcess) -> None:
    """``server`` runs a test on both kinds, each flushed before."""
    assert server.client().dbsize() == 0
    server.client().set("left over", "1")


@pytest.mark.usefixtures("redis7")
def test_redis_7_speaks_tls_and_knows_acl_users() -> None:
    """TLS with certificates made on the spot, users by rule, commands renamed away."""
    with (
        RedisProcess(
            tls=True, users={"bob": ">secret ~cs* +@all"}, rename_commands={"SWAPDB": ""}
        ) as server,
        redis.Redis.from_url(server.url_for("bob", "secret")) as bob,
    ):
        assert bob.set("cs/1", "x")
        with pytest.raises(rx.NoPermissionError):
            bob.get("other")
        with pytest.raises(rx.ResponseError, match="unknown command"):
            bob.execute_command("SWAPDB", 0, 1)


def test_the_shared_cluster_serves_every_slot(cluster: Cluster) -> None:
    """Three primaries share the slots; keys land on more than one of them."""
    ports = {cluster.primary_of(f"key {number}").port for number in range(50)}
    assert len(ports) == 3


def test_a_cluster_promotes_a_replica_when_a_primary_is_killed() -> None:
    """``kill_primary_of`` and ``wait_taken_over`` frame a failover exactly."""
    with Cluster(replicas=1) as cluster:
        with cluster.client() as client:
            client.set("a", "1")
            client.wait(1, 1000, target_nodes=client.get_node_from_key("a"))
        dead = cluster.kill_primary_of("a")
        heir = cluster.wait_taken_over("a", dead)
        assert heir.client().get("a") == b"1"
        dead.start()
        cluster.wait_ok()
        assert cluster.failover("a") is dead


def test_the_proxy_forwards_and_counts(proxy: Proxy, through: redis.Redis) -> None:
    """Without a fault nothing changes, large values in both directions included."""
    value = b"v" * 300_000
    through.set("big", value)
    assert through.get("big") == value
    assert proxy.connections == 1
    assert min(proxy.bytes.values()) > len(value)


def test_a_cut_reply_was_applied_but_never_arrives(
    valkey: ValkeyProcess, proxy: Proxy, through: redis.Redis
) -> None:
    """The third INCR is applied and its reply lost; the connection works again afterwards."""
    lost = proxy.cut_reply_to(b"INCR", nth=3)
    assert [through.incr("n"), through.incr("n")] == [1, 2]
    with pytest.raises(rx.ConnectionError):
        through.incr("n")
    assert lost.wait(5)
    assert valkey.client().get("n") == b"3"
    assert through.incr("n") == 4


def test_replies_before_a_cut_one_arrive(
    valkey: ValkeyProcess, proxy: Proxy, through: redis.Redis
) -> None:
    """In a pipeline the cut falls exactly before the marked command's reply."""
    connection = through.connection_pool.get_connection()
    proxy.cut_reply_to(b"second")
    connection.send_packed_command(
        connection.pack_commands([("SET", "first", "1"), ("SET", "second", "2")])
    )
    assert connection.read_response() == b"OK"
    with pytest.raises(rx.ConnectionError):
        connection.read_response()
    assert valkey.client().get("second") == b"2"
    through.connection_pool.release(connection)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_after_a_number_of_bytes_lets_exactly_those_pass(
    direction: str, proxy: Proxy, through: redis.Redis
) -> None:
    """Whichever the direction, no byte more passes on the connection that is cut."""
    through.ping()
    before = dict(proxy.bytes)
    cut = proxy.cut_after(9, direction)  # type: ignore[arg-type]
    with pytest.raises(rx.ConnectionError):
        through.echo("more than nine bytes")
    assert cut.wait(5)
    assert proxy.bytes[direction] - before[direction] == 9  # type: ignore[index]
    assert through.echo("again") == b"again"


def test_a_stalled_proxy_keeps_the_connection_and_delivers_late(
    valkey: ValkeyProcess, proxy: Proxy, through: redis.Redis
) -> None:
    """Stalled downwards, the command is applied, and its reply arrives after ``resume``."""
    connection = through.connection_pool.get_connection()
    proxy.stall("down")
    connection.send_command("INCR", "n")
    assert not connection.can_read(timeout=0.1)
    proxy.resume("down")
    assert connection.read_response() == 1
    assert valkey.client().get("n") == b"1"
    through.connection_pool.release(connection)


def test_cut_and_refuse_reset_connections_until_accept(proxy: Proxy, through: redis.Redis) -> None:
    """``cut`` says how many it reset; ``refuse`` also resets new ones."""
    connection = through.connection_pool.get_connection()
    connection.send_command("PING")
    connection.read_response()
    assert proxy.cut() == 1
    with pytest.raises(rx.ConnectionError):
        connection.read_response()
    through.connection_pool.release(connection)
    proxy.refuse()
    with pytest.raises(rx.ConnectionError):
        through.ping()
    proxy.accept()
    assert through.ping()


def test_frames_end_where_they_end_however_the_bytes_are_cut() -> None:
    """Any split of the bytes gives the same frame ends."""
    frames = [
        b"+OK\r\n",
        b"$5\r\nab\r\nc\r\n",
        b"*2\r\n*1\r\n:1\r\n$-1\r\n",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"*-1\r\n",
        b"-ERR x\r\n",
        b"%1\r\n+a\r\n:1\r\n",
    ]
    data = b"".join(frames)
    expected = [len(b"".join(frames[: count + 1])) for count in range(len(frames))]
    for size in range(1, len(data) + 1):
        scanner = Frames()
        ends = [
            start + end
            for start in range(0, len(data), size)
            for end in scanner.ends(data[start : start + size])
        ]
        assert ends == expected
