"""Deleting by value, in whichever form the server has."""

from __future__ import annotations

import pytest

from celery_streams.errors import ConfigurationError, StoreUnavailable
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import RedisLink
from celery_streams.redis.compare_delete import CompareAndDelete
from celery_streams.settings import StreamsSettings
from tests.credentials.conftest import Join
from tests.servers import Cluster, ServerProcess, ValkeyProcess


def test_only_the_value_that_was_seen_is_deleted(join: Join) -> None:
    """Another value under the key, or none, is left as it is."""
    link = join().link
    delete = CompareAndDelete(link)
    link.client.set("k", b"new \x00\xff")
    assert not delete("k", b"old")
    assert link.client.get("k") == b"new \x00\xff"
    assert delete("k", b"new \x00\xff")
    assert not link.client.exists("k")
    assert not delete("k", b"new \x00\xff")


def test_the_form_is_looked_for_once(join: Join, server: ServerProcess) -> None:
    """Unknown commands are tried by the first call only."""
    delete = CompareAndDelete(join().link)
    delete("k", b"v")
    client = server.client(decode_responses=True)
    before = client.info("errorstats")
    delete("k", b"v")
    assert client.info("errorstats") == before


def test_a_cluster_has_a_form_too(cluster: Cluster) -> None:
    """redis-py must know which node to send it to."""
    cluster.flush()
    link = RedisLink(parse_address(cluster.url), StreamsSettings(url=cluster.url))
    delete = CompareAndDelete(link)
    link.client.set("{a}k", b"v")
    assert not delete("{a}k", b"w")
    assert delete("{a}k", b"v")
    link.close()


def test_a_user_without_the_native_command_gets_the_script() -> None:
    """An ACL written before the command existed does not make evicting fail."""
    rules = ">pw ~* &* +@all -delifeq"
    with ValkeyProcess(users={"writer": rules}) as server:
        url = server.url_for("writer", "pw")
        link = RedisLink(parse_address(url), StreamsSettings(url=url))
        link.client.set("k", b"v")
        assert CompareAndDelete(link)("k", b"v")
        link.close()


def test_errors_of_the_last_form_are_the_callers() -> None:
    """A user who may not touch the key is told so; a dead server is unavailable."""
    with ValkeyProcess(users={"writer": ">pw ~mine* &* +@all"}) as server:
        url = server.url_for("writer", "pw")
        link = RedisLink(parse_address(url), StreamsSettings(url=url))
        with pytest.raises(ConfigurationError, match="permission"):
            CompareAndDelete(link)("yours", b"v")
        server.kill()
        with pytest.raises(StoreUnavailable):
            CompareAndDelete(link)("mine", b"v")
        link.close()
