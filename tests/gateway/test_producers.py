"""Idempotent producers over HTTP: once, whatever gets lost and whoever answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway.following import create, through
from tests.gateway.serving import Answer, Gateway, serving
from tests.servers import ValkeyProcess

Times = Callable[[int, int], int]


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    with serving(valkey.url) as gateway:
        yield gateway


@pytest.fixture
def path(gateway: Gateway) -> str:
    path = f"/v1/stream/producers/{time.time_ns()}"
    create(gateway, path)
    return path


def produce(
    gateway: Gateway,
    path: str,
    producer: str,
    seq: int,
    *values: object,
    epoch: int = 0,
    **more: str,
) -> Answer:
    headers = {
        "content-type": "application/json",
        "producer-id": producer,
        "producer-epoch": str(epoch),
        "producer-seq": str(seq),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    body = json.dumps(list(values)).encode() if values else None
    return gateway.request("POST", path, body, headers)


@pytest.mark.soak
def test_an_answer_that_is_lost(valkey: ValkeyProcess, path: str, times: Times) -> None:
    """The store has applied it, the gateway cannot know: the client sends it again."""
    lost, count = 0, times(5, 200)
    with through(valkey.port) as (proxy, gateway), serving(valkey.url) as other:
        assert produce(gateway, path, "warm", 0, "warm").status == 200
        for seq in range(count):
            cut = proxy.cut_reply_to(f"producers%2F{path.rpartition('/')[2]}".encode())
            answer = produce(gateway, path, "p", seq, seq)
            if answer.status == 503:
                lost += 1
                answer = produce(other if seq % 2 else gateway, path, "p", seq, seq)
                assert answer.status == 204  # known already
            assert answer.status in (200, 204)
            assert answer.headers["producer-seq"] == str(seq)
            assert cut.wait(10)
        assert lost
        body = other.request("GET", path).document
    assert body == ["warm", *range(count)]


def test_two_gateways_know_the_same_of_a_producer(
    valkey: ValkeyProcess, gateway: Gateway, path: str
) -> None:
    """Two gateways know the same of a producer."""
    with serving(valkey.url) as other:
        for seq in range(20):
            first, second = (gateway, other) if seq % 2 else (other, gateway)
            assert produce(first, path, "p", seq, seq).status == 200
            assert produce(second, path, "p", seq, seq).status == 204
        gap = produce(gateway, path, "p", 25, "gap")
        assert gap.status == 409
        assert gap.headers["producer-expected-seq"] == "20"
        assert gap.headers["producer-received-seq"] == "25"
        assert produce(other, path, "p", 0, "epoch", epoch=3).status == 200
        stale = produce(gateway, path, "p", 20, "stale")
        assert stale.status == 403
        assert stale.headers["producer-epoch"] == "3"
        assert produce(gateway, path, "p", 1, "early", epoch=4).status == 400
        ended = produce(other, path, "p", 1, "last", epoch=3, stream_closed="true")
        assert ended.status == 200
        again = produce(gateway, path, "p", 1, "last", epoch=3, stream_closed="true")
        assert again.status == 204
        assert again.headers["stream-closed"] == "true"
        assert produce(gateway, path, "p", 2, "late", epoch=3).status == 409
    assert gateway.request("GET", path).document == [*range(20), "epoch", "last"]


def test_many_producers_at_once(valkey: ValkeyProcess, gateway: Gateway, path: str) -> None:
    """Each sends everything twice, to two gateways, at the same time."""
    with serving(valkey.url) as other, ThreadPoolExecutor(50) as pool:

        def run(number: int) -> None:
            for seq in range(5):
                with ThreadPoolExecutor(2) as both:
                    statuses = sorted(
                        answer.status
                        for answer in both.map(
                            lambda each, seq=seq: produce(
                                each, path, f"p{number}", seq, [number, seq]
                            ),
                            (gateway, other),
                        )
                    )
                assert statuses == [200, 204]

        list(pool.map(run, range(50)))
    values = gateway.request("GET", path).document
    assert len(values) == 250
    for number in range(50):
        assert [seq for who, seq in values if who == number] == list(range(5))
