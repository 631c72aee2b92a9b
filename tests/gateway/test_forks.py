"""Forks while sources change, gateways compete and die."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from celery_streams import Streams
from tests.gateway.following import create, through
from tests.gateway.serving import Answer, Gateway, serving
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess) -> Iterator[Gateway]:
    with serving(valkey.url, CELERY_STREAMS_MAX_CHUNKS="500") as gateway:
        yield gateway


@pytest.fixture
def name() -> str:
    return f"/v1/stream/forks/{time.time_ns()}"


def fork(gateway: Gateway, path: str, source: str, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.request("PUT", path, None, {"stream-forked-from": source, **sent})


def values(gateway: Gateway, path: str, offset: str = "-1") -> list[Any]:
    """Everything from ``offset`` on, over as many pages as that takes."""
    found: list[Any] = []
    while True:
        answer = gateway.request("GET", f"{path}?offset={offset}")
        assert answer.status == 200, answer
        found += answer.document
        offset = answer.headers["stream-next-offset"]
        if "stream-up-to-date" in answer.headers:
            return found


def test_a_long_stream_and_its_fork_are_read_whole(gateway: Gateway, name: str) -> None:
    """Whatever the sizes of what was inherited, and of what each has got since."""
    large = "x" * 50_000
    gateway.request("PUT", name, b"[0]", JSON)
    for number in range(1, 100):
        gateway.request("POST", name, b"%d" % number, JSON)
    assert values(gateway, name) == list(range(100))
    gateway.request("POST", name, f'"{large}"'.encode(), JSON)
    forked = f"{name}-fork"
    assert fork(gateway, forked, name).status == 201
    for number in range(100):
        gateway.request("POST", forked, b"%d" % number, JSON)
    assert values(gateway, name) == [*range(100), large]
    assert values(gateway, forked) == [*range(100), large, *range(100)]


def test_a_fork_of_a_run_and_of_a_session(
    valkey: ValkeyProcess, gateway: Gateway, name: str
) -> None:
    """A fork of a run and of a session."""
    run, session = f"r{time.time_ns()}", f"s{time.time_ns()}"
    streams = Streams(url=valkey.url, secret="test secret")
    try:
        with streams.write_to(run, create=True) as writer:
            for number in range(1000):
                writer.write(number)
        streams.session(session).out.append("said")
    finally:
        streams.close()
    assert fork(gateway, name, f"/v1/stream/runs/{run}").status == 201
    assert values(gateway, name) == list(range(1000))
    assert fork(gateway, f"{name}-s", f"/v1/stream/sessions/{session}").status == 201
    assert values(gateway, f"{name}-s") == ["said"]
    gateway.append(f"{name}-s", "more")
    assert values(gateway, f"/v1/stream/sessions/{session}") == ["said"]


def test_a_fork_of_many_pages(gateway: Gateway, name: str) -> None:
    """A fork of many pages."""
    create(gateway, name)
    for page in range(40):
        gateway.append(name, *range(page * 500, page * 500 + 500))
    for number in range(600):  # more entries than one page has
        gateway.append(name, 20_000 + number)
    assert fork(gateway, f"{name}-f", name).status == 201
    assert values(gateway, f"{name}-f") == list(range(20_600))
    middle = fork(gateway, f"{name}-m", name, stream_fork_offset=f"{10_250:016d}")
    assert middle.headers["stream-next-offset"] == f"{10_250:016d}"
    assert values(gateway, f"{name}-m", "0000000000010000") == list(range(10_000, 10_250))
    further = fork(
        gateway, f"{name}-n", name, stream_fork_offset=f"{20_599:016d}", stream_fork_sub_offset="1"
    )
    assert further.headers["stream-next-offset"] == f"{20_600:016d}"


def test_a_fork_of_what_is_left_of_a_source(gateway: Gateway, name: str) -> None:
    """A fork of what is left of a source."""
    source = f"/v1/stream/sessions/{time.time_ns()}/in"
    create(gateway, source)
    for page in range(10):
        gateway.append(source, *range(page * 100, page * 100 + 100))
    gone = gateway.request("GET", f"{source}?offset=-1")
    assert gone.status == 410
    earliest = gone.headers["stream-earliest-offset"]
    assert gone.document["code"] == "offset-gone"
    assert fork(gateway, name, source).status == 201
    assert values(gateway, name, earliest) == list(range(int(earliest), 1000))
    assert gateway.request("GET", f"{name}?offset=-1").headers["stream-earliest-offset"] == earliest
    before = fork(gateway, f"{name}-b", source, stream_fork_offset=f"{100:016d}")
    assert before.status == 201
    gateway.append(f"{name}-b", "own")
    assert values(gateway, f"{name}-b", f"{100:016d}") == ["own"]


def test_a_source_that_is_deleted_before_it_is_copied(
    valkey: ValkeyProcess, gateway: Gateway, name: str
) -> None:
    """Its fork is not made, nor made from what takes the source's name meanwhile."""
    for again in (False, True):
        path = f"{name}-{again}"
        create(gateway, path)
        for page in range(3):
            gateway.append(path, *[["old", page, "x" * 1000]] * 700)
        with through(valkey.port) as (proxy, forking), ThreadPoolExecutor(1) as pool:
            assert forking.request("HEAD", path).status == 200  # loads the scripts
            proxy.delay(0.3, "up")
            copying = pool.submit(fork, forking, f"{path}-f", path)
            key = (
                f"cs/{{path/{path.removeprefix('/v1/stream/').replace('/', '%2F')}}}/forks/default"
            )
            eventually(lambda key=key: valkey.client().exists(key), "announced")
            assert gateway.request("DELETE", path).status == 204
            if again:
                gateway.request("GET", path)  # finds that the fork is not there
                recreated = gateway.request("PUT", path, b'["new"]', JSON)
                assert recreated.status in (201, 409)
            answer = copying.result(60)
            proxy.delay(0)
            made = forking.request("GET", f"{path}-f")
        if answer.status == 201:  # everything had been copied before
            assert b"new" not in made.body
            assert len(values(gateway, f"{path}-f")) == 2100
        else:
            assert answer.status in (404, 409, 410)
            assert made.status == 404


def test_a_source_that_is_trimmed_while_it_is_copied(valkey: ValkeyProcess, name: str) -> None:
    """A fork has no gap, whatever the source lost meanwhile."""
    source = f"/v1/stream/sessions/{time.time_ns()}/in"
    with serving(valkey.url, CELERY_STREAMS_MAX_CHUNKS="1500") as writer:
        create(writer, source)
        for first in range(0, 1500, 50):
            writer.append(source, *([number, "x" * 2000] for number in range(first, first + 50)))
        with through(valkey.port) as (proxy, forking), ThreadPoolExecutor(1) as pool:
            assert forking.request("HEAD", source).status == 200
            proxy.delay(0.2, "up")
            copying = pool.submit(fork, forking, name, source)
            client = valkey.client()
            eventually(lambda: next(client.scan_iter("*staged*", 1000), None), "a page is copied")
            writer.append(source, *[["new", "y"]] * 1400)
            assert copying.result(60).status in (201, 404)
        answer = writer.request("GET", f"{name}?offset=-1")
        if answer.status == 410:
            earliest = answer.headers["stream-earliest-offset"]
        else:
            earliest = "0000000000000000"
        numbers = [number for number, _ in values(writer, name, earliest)]
        assert numbers == list(range(int(earliest), 1500))


@pytest.mark.soak
def test_two_gateways_that_make_the_same_fork(
    valkey: ValkeyProcess, gateway: Gateway, name: str, times: Callable[[int, int], int]
) -> None:
    """Two gateways that make the same fork."""
    with serving(valkey.url) as other, ThreadPoolExecutor(4) as pool:
        create(gateway, name, *range(100))
        for number in range(times(5, 50)):
            barrier = threading.Barrier(4)

            def put(each: Gateway, path: str = f"{name}-{number}") -> Answer:
                barrier.wait(10)  # noqa: B023 - used in this round only
                return fork(each, path, name)

            answers = list(pool.map(put, [gateway, other] * 2))
            assert sorted(answer.status for answer in answers) == [200, 200, 200, 201]
            assert values(gateway, f"{name}-{number}") == list(range(100))


def test_a_name_is_free_again_once_its_forks_have_expired(gateway: Gateway, name: str) -> None:
    """A name is free again once its forks have expired."""
    create(gateway, name, 1)
    assert fork(gateway, f"{name}-f", name, stream_ttl="1").status == 201
    assert gateway.request("DELETE", name).status == 204
    assert gateway.request("GET", name).status == 410
    assert gateway.request("PUT", name, None, JSON).status == 409
    eventually(lambda: gateway.request("PUT", name, None, JSON).status == 201, "the name is free")
    assert values(gateway, name) == []


def test_a_source_that_lives_on_remembers_its_forks(gateway: Gateway, name: str) -> None:
    """Writes renew a stream's life; that it has forks is part of it."""
    create(gateway, name, 0, stream_ttl="2")
    assert fork(gateway, f"{name}-f", name, stream_ttl="60").status == 201
    deadline = time.monotonic() + 3.5
    while time.monotonic() < deadline:
        gateway.append(name, 1)
        time.sleep(0.1)
    assert gateway.request("DELETE", name).status == 204
    assert gateway.request("GET", name).status == 410
    assert gateway.request("DELETE", f"{name}-f").status == 204
    assert gateway.request("GET", name).status == 404


def test_a_fork_whose_answer_was_lost_is_still_a_fork(
    valkey: ValkeyProcess, gateway: Gateway, name: str
) -> None:
    """Whichever of the store's answers is lost, the source knows its forks afterwards."""
    create(gateway, name, 1, 2)
    forks, cuts = [f"{name}-{nth}f" for nth in range(1, 8)], 0
    with through(valkey.port) as (proxy, forking):
        assert fork(forking, f"{name}-first", name).status == 201  # loads the scripts
        for nth, path in enumerate(forks, 1):
            cut = proxy.cut_reply_to(path.rpartition("/")[2].encode(), nth=nth)
            answer = fork(forking, path, name)
            if answer.status == 503:
                cuts += cut.is_set()
                answer = fork(forking, path, name)
            assert answer.status in (200, 201)
    assert cuts >= 4
    for path in forks:
        assert values(gateway, path) == [1, 2]
    assert gateway.request("DELETE", name).status == 204
    for path in (f"{name}-first", *forks):
        assert gateway.request("GET", name).status == 410
        assert gateway.request("DELETE", path).status == 204
    assert gateway.request("GET", name).status == 404


def test_a_gateway_that_dies_leaves_nothing_that_lasts(
    valkey: ValkeyProcess, gateway: Gateway, name: str
) -> None:
    """At whatever moment: what was copied has an expiry, and the name is free."""
    client = valkey.client()
    create(gateway, name)
    for _ in range(8):
        gateway.append(name, *[["x" * 10_000]] * 100)
    for moment in (0, 3):
        with through(valkey.port) as (proxy, dying):
            assert dying.request("HEAD", name).status == 200
            proxy.delay(0.05, "up")
            body = threading.Thread(target=_put_in_vain, args=(dying, f"{name}-{moment}", name))
            body.start()
            uploaded = proxy.bytes["up"]
            eventually(
                lambda proxy=proxy, much=uploaded + moment * 1_000_000: proxy.bytes["up"] > much,
                "as much has been copied",
            )
            os.kill(dying.process.pid, signal.SIGKILL)
            dying.process.wait()
            body.join(20)
        for key in client.scan_iter("*staged*", 1000):
            assert client.ttl(key) in range(-2, 61)
            assert client.ttl(key) != -1
        assert fork(gateway, f"{name}-{moment}", name).status in (200, 201)
        assert len(values(gateway, f"{name}-{moment}")) == 800
        assert gateway.request("DELETE", f"{name}-{moment}").status == 204
    assert gateway.request("DELETE", name).status == 204
    assert gateway.request("GET", name).status == 404


def _put_in_vain(gateway: Gateway, path: str, source: str) -> None:
    with suppress(OSError, http.client.HTTPException):
        fork(gateway, path, source)
