"""Parse a store URL into :class:`Address`, and say what is wrong with one that cannot be."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from celery_streams.errors import ConfigurationError

REDIS_SCHEMES = frozenset({"redis", "rediss", "unix"})
CLUSTER_SUFFIX = "+cluster"
_FORMS = "redis://, rediss://, unix://, redis+cluster://, rediss+cluster:// or embedded://"
_SENTINEL = "sentinel://"

#: What ``ssl_cert_reqs`` may be, in numbers and as redis-py spells it.
_VERIFY_MODES = {int(mode): mode.name.removeprefix("CERT_").lower() for mode in ssl.VerifyMode}
_VERIFY = frozenset(_VERIFY_MODES.values())

#: Where Celery says that Redis is, and with which TLS options, in the order they are looked at.
_CELERY_SETTINGS = (
    ("result_backend", "redis_backend_use_ssl"),
    ("broker_url", "broker_use_ssl"),
)


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
    if url.startswith(_SENTINEL):
        raise _sentinel_unsupported("the store URL")
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
        url=_with_redis_py_s_words(scheme + url.strip()[len(parts.scheme) :]),
        cluster=cluster,
        username=parts.username or "",
        password=parts.password or "",
    )


def celery_url(conf: Any) -> str | None:
    """The store URL that Celery's configuration amounts to; ``None`` if it uses no Redis.

    The result backend's, else the broker's, with its TLS options (``redis_backend_use_ssl``,
    ``broker_use_ssl``) in the query. What the URL itself says goes first.

    Raises:
        ConfigurationError: it is Redis, but reached in a way that cannot be taken over.
    """
    sentinel = None
    for setting, tls_setting in _CELERY_SETTINGS:
        url = _first_url(getattr(conf, setting, None))
        if url.startswith(("redis://", "rediss://", "redis+cluster://", "rediss+cluster://")):
            return _with_tls(url, conf.get(tls_setting), tls_setting)
        if url.startswith("redis+socket://"):
            rest = url.removeprefix("redis+socket://")
            return "unix://" + rest.replace("virtual_host=", "db=")
        if url.startswith(_SENTINEL):
            sentinel = sentinel or setting
    if sentinel is not None:
        raise _sentinel_unsupported(f"no store is configured, and Celery's {sentinel}")
    return None


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


def _sentinel_unsupported(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is {_SENTINEL}..., but streams cannot ask a Sentinel for the primary: set "
        "CELERY_STREAMS_URL (or app.conf.streams_url) to an address that leads to the primary "
        "after a failover, too (a proxy or a DNS name that follows it), such as "
        "redis://:password@primary.example:6379/0, or to a cluster: redis+cluster://host:6379"
    )


def _first_url(configured: object) -> str:
    """The first of Celery's alternatives: a list, or one string with semicolons."""
    if isinstance(configured, (list, tuple)):
        configured = configured[0] if configured else ""
    return str(configured or "").split(";")[0]


def _with_tls(url: str, options: object, setting: str) -> str:
    """``url`` as a TLS one with ``options`` in its query, as redis-py takes them.

    Without options it stays as it is (kombu, too, does not make TLS of ``True`` alone).
    """
    url = _with_redis_py_s_words(url)
    if not isinstance(options, Mapping) or not options:
        return url
    scheme, _, rest = url.partition("://")
    if not scheme.startswith("rediss"):
        scheme = scheme.replace("redis", "rediss", 1)
    rest, _, query = rest.partition("?")
    given = parse_qs(query)
    added = [
        f"{name}={quote(_tls_value(name, value, setting), safe='/')}"
        for name, value in options.items()
        if name not in given and (value is not None or name == "ssl_cert_reqs")
    ]
    query = "&".join([*([query] if query else []), *added])
    return f"{scheme}://{rest}?{query}"


def _tls_value(name: object, value: object, setting: str) -> str:
    match name, value:
        case "ssl_cert_reqs", None:
            return "none"
        case "ssl_cert_reqs", int() if value in _VERIFY_MODES and not isinstance(value, bool):
            return _VERIFY_MODES[value]
        case "ssl_cert_reqs", str() if (word := value.removeprefix("CERT_").lower()) in _VERIFY:
            return word
        case "ssl_check_hostname", bool():
            return str(value)
        case "ssl_cert_reqs", _:
            pass
        case str(), (str() | os.PathLike()) if name.startswith("ssl_"):
            return os.fspath(value)
    raise ConfigurationError(
        f"{setting} has the option {name!r} with a value of the type {type(value).__name__}, "
        "which cannot be taken over for streams; set CELERY_STREAMS_URL (or "
        "app.conf.streams_url) to the store's address, such as "
        "rediss://host:6379/0?ssl_ca_certs=/etc/ssl/ca.pem"
    )


def _with_redis_py_s_words(url: str) -> str:
    """``ssl_cert_reqs`` as redis-py spells it (``none``), where Celery says ``CERT_NONE``."""
    address, mark, query = url.partition("?")
    known = r"\b(ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)\b"
    return address + mark + re.sub(known, lambda found: found[1] + found[2].lower(), query)
