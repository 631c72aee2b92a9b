"""Parse a store URL into :class:`Address`, and say what is wrong with one that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

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
    except ValueError:
        # Its text would quote the URL.
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} cannot be parsed; set CELERY_STREAMS_URL to "
            f"{_FORMS}, with a number for the port and with / # ? @ : % of the password "
            "percent-encoded"
        ) from None
    cluster = parts.scheme.endswith(CLUSTER_SUFFIX)
    scheme = parts.scheme.removesuffix(CLUSTER_SUFFIX)
    if scheme not in REDIS_SCHEMES or (cluster and scheme == "unix"):
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} cannot be used; set CELERY_STREAMS_URL to {_FORMS}"
        )
    if cluster and parts.path.strip("/") not in ("", "0"):
        raise ConfigurationError(
            f"the store URL {redacted(url)!r} names a database, but a cluster has only "
            "database 0; remove the path"
        )
    return Address(
        # Not urlunsplit: it drops the empty host of unix:///path.
        url=scheme + url.strip()[len(parts.scheme) :],
        cluster=cluster,
        username=parts.username or "",
        password=parts.password or "",
    )


def redacted(url: str) -> str:
    """``url`` without what may be secret, fit for a log line.

    Where an unescaped character makes it unclear what belongs to the password, nothing but a
    known scheme is left.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError when it is not a number
    except ValueError:
        return "***"
    if not parts.scheme or "//" not in url[: len(parts.scheme) + 3]:
        return "***"
    if "@" in parts.path + parts.query + parts.fragment:
        return f"{parts.scheme}://***"
    return f"{parts.scheme}://{_host_only(parts)}{parts.path}"


def _host_only(parts: SplitResult) -> str:
    _, at, host = parts.netloc.rpartition("@")
    return f"***@{host}" if at else host
