"""The store's address as Celery's own configuration has it: TLS options, Sentinel."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis.connection import parse_url

from celery_streams import ConfigurationError
from celery_streams.redis.address import celery_url, parse_address

_CA = "/etc/ssl/my ca&=.pem"


def _conf(**settings: Any) -> Any:
    app = Celery("addresses", set_as_current=False)
    app.conf.update({"broker_url": "memory://", **settings})
    return app.conf


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"ssl_cert_reqs": ssl.CERT_NONE}, {"ssl_cert_reqs": "none"}),
        ({"ssl_cert_reqs": ssl.CERT_REQUIRED}, {"ssl_cert_reqs": "required"}),
        ({"ssl_cert_reqs": 1}, {"ssl_cert_reqs": "optional"}),
        ({"ssl_cert_reqs": "CERT_OPTIONAL"}, {"ssl_cert_reqs": "optional"}),
        ({"ssl_cert_reqs": "required"}, {"ssl_cert_reqs": "required"}),
        ({"ssl_cert_reqs": None}, {"ssl_cert_reqs": "none"}),
        ({"ssl_ca_certs": _CA}, {"ssl_ca_certs": _CA}),
        ({"ssl_ca_certs": Path(_CA), "ssl_certfile": None}, {"ssl_ca_certs": _CA}),
        (
            {"ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem", "ssl_check_hostname": False},
            {"ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem", "ssl_check_hostname": False},
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize(
    ("url", "options"),
    [("result_backend", "redis_backend_use_ssl"), ("broker_url", "broker_use_ssl")],
)
def test_tls_options_are_taken_over(
    given: dict[str, Any], taken: dict[str, Any], scheme: str, url: str, options: str
) -> None:
    """Of broker and backend, in each spelling that Celery takes; redis-py reads what was meant."""
    found = celery_url(_conf(**{url: f"{scheme}://:p%40@h:1/2", options: given}))
    assert found is not None
    parsed = parse_url(parse_address(found).url)
    assert (parsed.pop("connection_class").__name__, parsed) == (
        "SSLConnection",
        {"host": "h", "port": 1, "db": 2, "password": "p@", **taken},
    )


def test_what_the_url_says_goes_first() -> None:
    """As Celery has it; the dictionary fills in what is missing."""
    found = celery_url(
        _conf(
            broker_url="rediss://h/0?ssl_cert_reqs=CERT_NONE",
            broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"},
        )
    )
    assert found == "rediss://h/0?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem"


@pytest.mark.parametrize("option", [True, False, None, {}])
def test_a_url_without_options_stays_as_it_is(option: Any) -> None:
    """``True`` alone does not make TLS of ``redis://`` in kombu, either."""
    assert celery_url(_conf(broker_url="redis://h/0", broker_use_ssl=option)) == "redis://h/0"


def test_each_url_has_its_own_options() -> None:
    """The broker's are not the backend's."""
    conf = _conf(
        result_backend="redis://h/0", broker_url="redis://b/0", broker_use_ssl={"ssl_ca_certs": "x"}
    )
    assert celery_url(conf) == "redis://h/0"


@pytest.mark.parametrize(
    "options",
    [
        {"ssl_min_version": 771},
        {"keyfile": "/k"},
        {"ssl_ca_data": b"secret"},
        {"ssl_cert_reqs": 7},
        {"ssl_cert_reqs": True},
        {"ssl_cert_reqs": "secret"},
        {"ssl_cert_reqs": ""},
    ],
)
def test_an_option_that_cannot_be_taken_over_is_refused(options: dict[str, Any]) -> None:
    """Leaving out one that is about safety would not be safe. No value is shown."""
    with pytest.raises(ConfigurationError, match=r"broker_use_ssl.*CELERY_STREAMS_URL") as caught:
        celery_url(_conf(broker_url="redis://h/0", broker_use_ssl=options))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("how", ["none", "optional", "required"])
def test_celery_s_spelling_is_good_in_a_store_url_too(how: str) -> None:
    """``CERT_NONE`` and the others, which redis-py does not know; only in the query."""
    url = "rediss://:ssl_cert_reqs=CERT_NONE@h/0?a=1&ssl_cert_reqs="
    assert parse_address(f"{url}CERT_{how.upper()}").url == url + how


_SENTINELS = "sentinel://:pw@s1:26379;sentinel://s2:26379"


@pytest.mark.parametrize("setting", ["result_backend", "broker_url"])
def test_sentinel_is_refused_with_what_to_set(setting: str) -> None:
    """The error says whose address it is; the password is not shown."""
    conf = _conf(**{setting: _SENTINELS})
    expected = rf"{setting}.*Sentinel.*CELERY_STREAMS_URL"
    with pytest.raises(ConfigurationError, match=expected) as caught:
        celery_url(conf)
    assert "pw" not in str(caught.value)


def test_redis_beside_sentinel_is_used() -> None:
    """A plain Redis is preferred to an error."""
    assert celery_url(_conf(result_backend=_SENTINELS, broker_url="redis://h")) == "redis://h"


def test_sentinel_as_the_store_url_is_refused_with_what_to_set() -> None:
    """Not as a URL that cannot be parsed, which kombu's spelling cannot."""
    with pytest.raises(ConfigurationError, match=r"Sentinel.*CELERY_STREAMS_URL") as caught:
        parse_address(_SENTINELS)
    assert "pw" not in str(caught.value)
