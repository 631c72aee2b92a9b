"""Where the store is, taken over from Celery, and URLs that redis-py cannot take."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_streams import ConfigurationError, Streams, StreamsSettings
from celery_streams.back_ends import BackEnds, located
from celery_streams.redis.address import parse_address


@pytest.mark.parametrize(
    ("broker", "url"),
    [
        ("redis://:pw@h:1/2", "redis://:pw@h:1/2"),
        (["redis://a/0", "redis://b/0"], "redis://a/0"),
        ("redis://a/0;redis://b/0", "redis://a/0"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_cert_reqs=none"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
    ],
)
def test_celery_s_own_redis_url_is_taken_over(
    broker: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every spelling that Celery documents."""
    monkeypatch.delenv("CELERY_STREAMS_URL", raising=False)
    app = Celery("urls", set_as_current=False)
    app.conf.broker_url = broker
    address, _ = located(StreamsSettings.load(app.conf), app.conf, BackEnds())
    assert address.url == parse_address(url).url


@pytest.mark.parametrize("query", ["foo=1", "ssl_cert_reqs=nonsense"])
def test_an_option_that_redis_py_refuses_is_a_configuration_error(query: str) -> None:
    """Said with the address, without the password, before anything is sent."""
    streams = Streams(url=f"rediss://:pw@127.0.0.1:1/0?{query}")
    with pytest.raises(ConfigurationError, match="option in its query") as caught:
        streams.head("run")
    assert "pw" not in str(caught.value)
