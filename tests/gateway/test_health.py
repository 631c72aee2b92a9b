"""``/healthz``, ``/readyz`` and ``/metrics``: what operators see."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as families

from celery_streams import Streams
from celery_streams.gateway import Gateway, create_app
from celery_streams.gateway.metrics import Latencies
from tests.gateway.serving import ask, serving
from tests.servers import ValkeyProcess
from tests.workers import ROOT

SECRET = "a secret of thirty-two bytes or more"


def gateway(url: str, **settings: Any) -> Gateway:
    return create_app(Streams(url=url, secret=SECRET, **settings))


def open_gateway(url: str, **settings: Any) -> Gateway:
    return create_app(Streams(url=url, **settings), insecure=True)


def token(*scopes: str) -> str:
    return "Bearer " + Streams(url="redis://none", secret=SECRET).token(scopes, ttl=60)


def test_alive_and_ready_need_no_token(valkey: ValkeyProcess) -> None:
    """200, never cached; for HEAD as well; nothing else may be asked."""

    async def main() -> None:
        app = gateway(valkey.url)
        for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
            answer = await ask(app, "GET", path)
            assert (answer.status, answer.document) == (200, {"status": status})
            assert answer.headers["cache-control"] == "no-store"
            assert (await ask(app, "HEAD", path)).body == b""
            assert (await ask(app, "POST", path)).status == 405
        await app.aclose()

    asyncio.run(main())


def test_without_its_store_a_gateway_lives_and_is_not_ready() -> None:
    """/readyz is 503 with a problem document, soon; /healthz stays 200."""

    async def main() -> None:
        app = gateway("redis://127.0.0.1:1")
        answer = await ask(app, "GET", "/readyz")
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.document["code"] == "store-unavailable"
        assert (await ask(app, "GET", "/healthz")).status == 200
        await app.aclose()

    asyncio.run(main())


def test_a_store_that_does_not_answer_is_not_waited_for() -> None:
    """A server that accepts and says nothing: 503 after two seconds, for all who ask at once."""

    async def main() -> None:
        async def silent(_: Any, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer)
            await asyncio.sleep(30)

        accepted: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        app = gateway(f"redis://127.0.0.1:{port}")
        began = time.monotonic()
        answers = await asyncio.gather(*(ask(app, "GET", "/readyz") for _ in range(20)))
        assert time.monotonic() - began < 4
        assert {answer.status for answer in answers} == {503}
        # Once for them all, and by what the gateway does of its own accord.
        assert len(accepted) < 5
        await app.aclose()
        for writer in accepted:
            writer.close()
        server.close()

    asyncio.run(main())


def test_an_outage_of_the_store_is_told_once_and_so_is_its_end() -> None:
    """Not a line for each attempt; what is interrupted and what is back, as warnings."""
    with (
        ValkeyProcess() as store,
        serving(store.url) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=15) as reader,
    ):
        reader.sendall(
            b"GET /v1/stream/runs/awaited?offset=-1&live=sse HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        assert reader.recv(100).startswith(b"HTTP/1.1 200")
        store.kill()
        for what in ("live events", "subscriptions"):
            gateway.log.wait_for(f"{what} are interrupted, trying again: cannot reach Redis")
        store.start()
        for what in ("live events", "subscriptions"):
            text = gateway.log.wait_for(f"WARNING:  {what} are back after")
        assert text.count("live events are interrupted") <= 2  # of readers, and of subscriptions
        assert text.count("subscriptions are interrupted") == 1


def test_a_gateway_that_drains_is_not_ready_and_ends_new_live_reads(valkey: ValkeyProcess) -> None:
    """Also if nothing has been read before: an SSE read gets what there is, and ends."""

    async def main() -> None:
        for before in (False, True):
            app = open_gateway(valkey.url)
            if before:
                assert (await ask(app, "GET", "/readyz")).status == 200
            app.drain()
            answer = await ask(app, "GET", "/readyz")
            assert (answer.status, answer.document["code"]) == (503, "draining")
            path = "/v1/stream/drained"
            await ask(app, "PUT", path, b"[1,2]", content_type="application/json")
            async with asyncio.timeout(5):
                answer = await ask(app, "GET", f"{path}?live=sse&offset=-1")
                polled = await ask(app, "GET", f"{path}?live=long-poll&offset=now")
            assert b"data:[1,2]" in answer.body
            assert polled.status == 204
            await app.aclose()

    asyncio.run(main())


def test_metrics_need_their_scope_unless_they_are_public(valkey: ValkeyProcess) -> None:
    """read:metrics, read:* and admin:* are good for it; reading every run is not."""

    async def main() -> None:
        app = gateway(valkey.url)
        assert (await ask(app, "GET", "/metrics")).status == 401
        other = await ask(app, "GET", "/metrics", authorization=token("read:runs/*"))
        assert other.status == 403
        assert 'scope="read:metrics"' in other.headers["www-authenticate"]
        for scope in ("read:metrics", "read:*", "admin:*"):
            assert (await ask(app, "GET", "/metrics", authorization=token(scope))).status == 200
        await app.aclose()
        public = gateway(valkey.url, gateway_metrics_public=True)
        assert (await ask(public, "GET", "/metrics")).status == 200
        await public.aclose()

    asyncio.run(main())


def _samples(text: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("celery_streams_gateway_")
            found[name, *sample.labels.values()] = sample.value
    return found


def test_metrics_count_what_has_happened(valkey: ValkeyProcess) -> None:
    """Requests, appends, events, deliveries and their bytes, as far as two readers saw them."""
    valkey.flush()

    async def main() -> dict[tuple[str, ...], float]:
        app = open_gateway(valkey.url)
        path = "/v1/stream/counted"
        await ask(app, "PUT", path, content_type="application/json")
        reads = [
            asyncio.create_task(ask(app, "GET", f"{path}?live=sse&offset=-1")) for _ in range(2)
        ]

        async def until(name: str, value: float) -> dict[tuple[str, ...], float]:
            async with asyncio.timeout(10):
                while True:
                    seen = _samples((await ask(app, "GET", "/metrics")).body.decode())
                    if seen[name,] == value:
                        return seen

        during = await until("subscribers", 2)
        assert during["streams",] == 1
        assert during["redis_connections",] >= 1
        for _ in range(5):
            await ask(app, "POST", path, b'"hello"', content_type="application/json")
        await until("deliveries_total", 10)
        await ask(app, "BREW", path)
        app.drain()
        bodies = [(await read).body for read in reads]
        assert bodies[0].count(b'data:["hello"]') == 5
        samples = _samples((await ask(app, "GET", "/metrics")).body.decode())
        assert samples["draining",] == 1
        assert samples["delivered_bytes_total",] == pytest.approx(2 * len(bodies[0]), rel=0.5)
        await app.aclose()
        return samples

    samples = asyncio.run(main())
    assert samples["events_total",] == 5
    assert samples["deliveries_total",] == 10
    assert samples["cut_off_total",] == 0
    assert samples["requests_total", "POST", "204"] == 5
    assert samples["requests_total", "PUT", "201"] == 1
    assert samples["requests_total", "other", "405"] == 1
    assert samples["append_seconds_count",] == 5
    assert 0 < samples["append_seconds_sum",] < 10
    assert samples["append_seconds_bucket", "+Inf"] == 5
    assert samples["event_loop_lag_seconds",] >= 0
    assert samples["process_open_fds",] > 0


def test_failures_of_the_store_are_counted_by_operation() -> None:
    """An append and a read that fail: one each."""

    async def main() -> dict[tuple[str, ...], float]:
        app = open_gateway("redis://127.0.0.1:1")
        path = "/v1/stream/x"
        assert (await ask(app, "GET", path)).status == 503
        assert (await ask(app, "POST", path, b"1", content_type="text/plain")).status == 503
        return _samples((await ask(app, "GET", "/metrics")).body.decode())

    samples = asyncio.run(main())
    assert samples["store_errors_total", "append"] == 1
    assert samples["store_errors_total", "read"] == 1
    assert samples["append_seconds_count",] == 0


def test_metrics_are_what_the_scraper_accepts(valkey: ValkeyProcess) -> None:
    """OpenMetrics for whoever asks for it; two gateways in one process share nothing."""

    async def main() -> None:
        one, two = open_gateway(valkey.url), open_gateway(valkey.url)
        await ask(one, "GET", "/healthz")
        answer = await ask(one, "GET", "/metrics", accept="application/openmetrics-text")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert list(openmetrics(answer.body.decode()))
        other = _samples((await ask(two, "GET", "/metrics")).body.decode())
        assert not [name for name in other if name[0] == "requests_total"]

    asyncio.run(main())


def test_without_prometheus_client_there_are_no_metrics_and_everything_else() -> None:
    """501 with what to install; the gateway does not import it before it is asked."""
    code = """
import asyncio, json, sys
sys.modules["prometheus_client"] = None
from celery_streams import Streams
from celery_streams.gateway import create_app
from tests.gateway.serving import ask
app = create_app(Streams(url="redis://127.0.0.1:1"), insecure=True)
answers = [asyncio.run(ask(app, "GET", path)) for path in ("/healthz", "/metrics")]
print(json.dumps([[a.status, a.document] for a in answers]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (alive, metrics) = json.loads(done.stdout)
    assert alive[0] == 200
    assert metrics[0] == 501
    assert "celery-streams[gateway]" in metrics[1]["detail"]


def test_buckets_count_what_did_not_exceed_their_bound() -> None:
    """A value on a bound is within it; the last bucket has everything."""
    latencies = Latencies((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 1.0, 7.0):
        latencies.observe(seconds)
    assert latencies.buckets() == [("0.1", 2.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert latencies.total == pytest.approx(8.65)
