"""Which store the settings mean, and what it takes; nothing is connected to."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery

from celery_streams import ChunkTooLarge, ConfigurationError, Streams
from celery_streams.credentials.remote import HttpAuthority
from celery_streams.stores.s2.store import S2Store

#: Nobody listens there.
_S2 = "s2://t0ken-in-url@basin-one?endpoint=http://127.0.0.1:9&skip_access_tokens"
_REDIS = "redis://:passw0rd@127.0.0.1:9/3"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_STREAMS_URL", "CELERY_STREAMS_REDIS_URL", "S2_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_chunks_on_s2_need_a_redis_for_the_rest() -> None:
    """Celery's, or one that is named; else the error says what to set."""
    for app in (None, Celery("amqp", broker="amqp://h", set_as_current=False)):
        with pytest.raises(ConfigurationError, match="CELERY_STREAMS_REDIS_URL"):
            Streams(app, url=_S2).stats()
    app = Celery("redis", broker="amqp://h", backend=_REDIS, set_as_current=False)
    assert Streams(app, url=_S2).runtime.link.address.url == _REDIS
    other = "redis://127.0.0.1:9/4"
    app = Celery("both", broker=_REDIS, set_as_current=False)
    assert Streams(app, url=_S2, redis_url=other).runtime.link.address.url == other


def test_a_chunk_that_s2_cannot_take_is_refused_by_write() -> None:
    """Before anything is sent: there is no server to send it to."""
    streams = Streams(url=_S2, redis_url=_REDIS)
    most = S2Store.max_chunk_bytes
    for content_type, filler in ((None, '"{}"'), ("text/plain", "{}")):
        key = "text" if content_type else "json"
        writer = streams.write_to("run", key, create=True, content_type=content_type)
        too_large = "x" * (most + 3 - len(filler))
        with pytest.raises(ChunkTooLarge) as refused:
            writer.write(too_large)
        assert refused.value.limit == most
    assert streams.settings.max_chunk_bytes == 1024 * 1024


@pytest.mark.parametrize(
    "given", [{}, {"batch_bytes": 10**9, "batch_chunks": 10**9, "max_chunk_bytes": 10**9}]
)
def test_a_batch_fits_a_record_however_many_chunks_it_has(given: dict[str, Any]) -> None:
    """With what framing adds to each."""
    settings = Streams(url=_S2, redis_url=_REDIS, **given).runtime.settings
    assert settings.batch_bytes + 4 * settings.batch_chunks <= S2Store.max_payload_bytes
    assert settings.max_chunk_bytes + 4 <= S2Store.max_payload_bytes
    assert settings.batch_bytes >= 512 * 1024


def test_no_token_is_ever_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it was given: not in settings, addresses, objects, errors or logs."""
    caplog.set_level(logging.DEBUG)
    streams = Streams(
        url=_S2, redis_url=_REDIS, s2_access_token="t0ken-set",
        authority_url="https://gateway.example", authority_token="t0ken-worker",
    )  # fmt: skip
    runtime = streams.runtime
    assert isinstance(runtime.authority, HttpAuthority)
    shown = [repr(streams.settings), runtime.where, repr(vars(runtime.store))]
    shown += [repr(vars(runtime.authority)), caplog.text]
    for wrong in ("s2://t0ken@b?end=1", "s2://t0ken@"):
        with pytest.raises(ConfigurationError) as error:
            Streams(url=wrong, redis_url=_REDIS).stats()
        shown.append(str(error.value))
    assert "t0ken" not in "".join(shown)
    assert "passw0rd" not in "".join(shown)
    assert (
        runtime.where == "s2://basin-one at http://127.0.0.1:9, runs on redis://***@127.0.0.1:9/3"
    )


def test_the_setting_of_the_token_comes_before_the_environment_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the URL's before both."""
    monkeypatch.setenv("S2_ACCESS_TOKEN", "environment")
    for url, setting, token in (
        ("s2://basin-one", None, "environment"),
        ("s2://basin-one", "setting", "setting"),
        ("s2://url%2Fs@basin-one", "setting", "url/s"),
    ):
        streams = Streams(url=url, redis_url=_REDIS, s2_access_token=setting)
        store = streams.runtime.store
        assert isinstance(store, S2Store)
        assert store.address.token == token
