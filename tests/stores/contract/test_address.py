"""Store URLs: what can be used, what is said about the others, and that nothing secret shows."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams.errors import ConfigurationError
from celery_streams.redis.address import parse_address, redacted


@pytest.mark.parametrize(
    ("url", "shown", "cluster"),
    [
        ("redis://h", "redis://h", False),
        ("redis://h:1/3", "redis://h:1/3", False),
        ("rediss://u:p%40@h:1/0?ssl_ca_certs=/ca.pem", "rediss://***@h:1/0", False),
        ("redis://:p@[::1]:7/2", "redis://***@[::1]:7/2", False),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock", False),
        ("unix://u:p@/run/redis.sock", "unix://***@/run/redis.sock", False),
        ("redis+cluster://a:1", "redis://a:1", True),
        ("rediss+cluster://:p@a:1/0?password=x", "rediss://***@a:1/0", True),
    ],
)
def test_every_form_is_understood_and_shown_without_secrets(
    url: str, shown: str, cluster: bool
) -> None:
    """The scheme's suffix is ours; the rest goes to redis-py as it is."""
    address = parse_address(url)
    assert (str(address), address.cluster) == (shown, cluster)
    assert address.url == url.replace("+cluster", "")


@pytest.mark.parametrize(
    "url",
    [
        "", "h:6379", "http://h", "amqp://h", "unix+cluster:///s", "redis://h:port", "redis://h:99999",
        "redis://[::1", "redis+cluster://h/1", "redis+cluster://h/x",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_what_to_set(url: str) -> None:
    """At once, before anything is connected."""
    with pytest.raises(ConfigurationError, match=r"CELERY_STREAMS_URL|remove the path"):
        parse_address(url)


#: Passwords as people paste them: not escaped. Long enough not to be part of a message by chance.
_PASSWORDS = st.text("Zqx7/#?@:%[]&= \u2100", min_size=1, max_size=8).map(lambda s: f"Zq{s}9Xj")


@given(
    scheme=st.sampled_from(["redis://", "redis+cluster://", "unix://", "http://", "", "redis:/"]),
    user=st.sampled_from(["", "user"]),
    password=_PASSWORDS,
    host=st.sampled_from(["h:6379/0", "h", "/run/s", "[::1]:1", "h:port"]),
    query=st.sampled_from(["", "?password=Zq9Xj", "?ssl_password=a@Zq9Xj"]),
    escaped=st.booleans(),
)
def test_no_part_of_a_password_ever_shows(
    scheme: str, user: str, password: str, host: str, query: str, escaped: bool
) -> None:
    """Not in a repr, a str or a message, even where the URL cannot mean what was intended."""
    written = quote(password, safe="") if escaped else password
    url = f"{scheme}{user}:{written}@{host}{query}"
    try:
        address = parse_address(url)
        shown = f"{address} {address!r} {redacted(url)}"
    except ConfigurationError as error:
        shown = f"{error} {error!r} {redacted(url)} {error.__cause__}"
    assert "Zq" not in shown
    assert "9Xj" not in shown
