"""Parse a store URL into :class:`Address`, and say what is wrong with one that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit, urlunsplit

from celery_streams.errors import ConfigurationError

REDIS_SCHEMES = frozenset({"redis", "rediss", "unix"})
CLUSTER_SUFFIX = "+cluster"
_FORMS = "redis://, rediss://, unix://, redis+cluster://, rediss+cluster:// or embedded://"


@dataclass(frozen=True, slots=True)
class Address:
    """A server (or cluster) to connect to. ``url`` is what redis-py's ``from_url`` takes."""

    url: str = field(repr=False)
    cluster: bool
    username: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        """The address without its secrets, for messages and logs."""
        return redacted(self.url)


def parse_address(url: str) -> Address:
    """Parse ``url``. TLS options and the database go in the query, as redis-py documents.

    Raises:
        ConfigurationError: not a URL this package can use; the message never shows the password.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError when it is not a number
    except ValueError as error:
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} cannot be parsed ({error}); "
            f"set CELERY_STREAMS_URL to {_FORMS}"
        ) from None
    cluster = parts.scheme.endswith(CLUSTER_SUFFIX)
    scheme = parts.scheme.removesuffix(CLUSTER_SUFFIX)
    if scheme not in REDIS_SCHEMES or (cluster and scheme == "unix"):
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} has the scheme {parts.scheme!r}; "
            f"set CELERY_STREAMS_URL to {_FORMS}"
        )
    if cluster and parts.path.strip("/") not in ("", "0"):
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} names a database, but a cluster has only "
            "database 0; remove the path"
        )
    return Address(
        url=urlunsplit(parts._replace(scheme=scheme)),
        cluster=cluster,
        username=parts.username or "",
        password=parts.password or "",
    )


def redacted(url: str) -> str:
    """``url`` with its password and query replaced, fit for a log line."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<unparsable>"
    return urlunsplit(parts._replace(netloc=_host_only(parts), query="", fragment=""))


def _host_only(parts: SplitResult) -> str:
    _, at, host = parts.netloc.rpartition("@")
    return f"***@{host}" if at else host
