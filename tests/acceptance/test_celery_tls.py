"""A store that Celery reaches by TLS is reached by streams, without a setting of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_streams import StoreUnavailable, Streams
from tests.servers import RedisProcess
from tests.workers import Worker


@pytest.fixture(scope="module")
def tls_server(redis7: RedisProcess) -> Iterator[RedisProcess]:
    """A Redis 7 that speaks TLS only, and wants a certificate of its clients, too."""
    with RedisProcess(tls=True, requirepass="secret") as server:
        server.client().config_set("tls-auth-clients", "yes")
        yield server


@pytest.fixture
def options(tls_server: RedisProcess) -> dict[str, Any]:
    """As they are written for Celery."""
    return {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": str(tls_server.ca_file),
        "ssl_certfile": str(tls_server.directory / "server.pem"),
        "ssl_keyfile": str(tls_server.directory / "server.key"),
    }


def _app(conf: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.delenv("CELERY_STREAMS_URL", raising=False)
    app = Celery("client", set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_worker_streams_through_celery_s_own_tls_settings(
    tls_server: RedisProcess,
    options: dict[str, Any],
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broker, backend and streams by the same dictionaries, with a client certificate."""
    conf = {
        "broker_url": f"{scheme}://:secret@127.0.0.1:{tls_server.port}/14",
        "broker_use_ssl": options,
        "result_backend": f"{scheme}://:secret@127.0.0.1:{tls_server.port}/15",
        "redis_backend_use_ssl": options,
    }
    try:
        assert _app(conf, monkeypatch).backend
    except ValueError as error:
        pytest.skip(f"this version of Celery: {' '.join(str(error).split())}")
    worker = Worker(
        module="tests.acceptance.tls_app",
        broker_url="",
        result_backend="",
        streams_url="",
        concurrency=1,
        env={"TEST_CELERY_CONF": json.dumps(conf)},
    )
    app = _app(conf, monkeypatch)
    streams = Streams(app, secret="test secret")
    with worker:
        result = app.send_task("tests.acceptance.tls_app.count", (50,))
        assert list(streams.read(result.id, timeout=20)) == list(range(50))
        assert result.get(timeout=20) == 50

        async def read() -> list[Any]:
            chunks = [chunk async for chunk in streams.aread(result.id, timeout=20)]
            await streams.runtime.async_store()._link.close()  # type: ignore[attr-defined]
            return chunks

        assert asyncio.run(read()) == list(range(50))
    streams.close()
    app.close()


@pytest.mark.parametrize("lacking", ["ssl_ca_certs", "ssl_certfile"])
def test_each_option_counts(
    tls_server: RedisProcess,
    options: dict[str, Any],
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the authority the server is refused, without the certificate the client."""
    del options[lacking]
    if lacking == "ssl_certfile":
        del options["ssl_keyfile"]
    url = f"redis://:secret@127.0.0.1:{tls_server.port}/14"
    app = _app({"broker_url": url, "broker_use_ssl": options}, monkeypatch)
    streams = Streams(app, secret="test secret")
    with pytest.raises(StoreUnavailable):
        streams.head("run")
    streams.close()


@pytest.mark.parametrize("how", ["none", "CERT_NONE"])
def test_a_certificate_that_is_not_to_be_checked(
    tls_server: RedisProcess,
    options: dict[str, Any],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the URL's own query, in both spellings, over what the dictionary says."""
    del options["ssl_ca_certs"]
    url = f"rediss://:secret@127.0.0.1:{tls_server.port}/14?ssl_cert_reqs={how}"
    app = _app({"broker_url": url, "broker_use_ssl": options}, monkeypatch)
    streams = Streams(app, secret="test secret")
    with streams.write_to("run", f"key-{how}", create=True) as writer:
        assert writer.append("there") == 0
    assert streams.head("run", f"key-{how}").end == 1
    streams.close()
