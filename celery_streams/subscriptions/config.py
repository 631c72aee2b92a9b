"""What a subscription is: :class:`Configuration`, as a client describes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from celery_streams.errors import InvalidName, StreamError
from celery_streams.slots import check_name
from celery_streams.stores.patterns import Pattern, slot_at

Kind = Literal["webhook", "pull-wake", "celery"]

#: Milliseconds of a lease: by default, at least, at most (PROTOCOL 6.2).
LEASE_MS = 30_000
SHORTEST_LEASE_MS = 1_000
LONGEST_LEASE_MS = 600_000
#: Explicit streams named in one request.
MAX_STREAMS = 1000
_MAX_DESCRIPTION = 4096
_MAX_URL = 2048


class InvalidSubscription(StreamError, ValueError):
    """No subscription can be like this; the message says why."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A subscription's configuration, normalized: what is the same is equal."""

    type: Kind
    pattern: str | None = None
    streams: tuple[str, ...] = ()
    url: str | None = None
    wake_stream: str | None = None
    task: str | None = None
    queue: str | None = None
    lease_ttl_ms: int = LEASE_MS
    description: str | None = None

    @classmethod
    def parse(cls, document: object) -> Configuration:
        """Read a request's document.

        Raises:
            InvalidSubscription: it is none; webhook URLs are not looked at any closer here.
        """
        if not isinstance(document, dict):
            raise InvalidSubscription("a subscription is a JSON object")
        kind = document.get("type")
        if kind not in get_args(Kind):
            raise InvalidSubscription("type is 'webhook', 'pull-wake' or 'celery'")
        pattern = _text(document, "pattern", MAX_STREAMS * 10)
        streams = parse_streams(document.get("streams"))
        if pattern is None and not streams:
            raise InvalidSubscription("a subscription has a pattern, or streams, or both")
        lease = document.get("lease_ttl_ms", LEASE_MS)
        if lease is None:
            lease = LEASE_MS
        if type(lease) is not int or not SHORTEST_LEASE_MS <= lease <= LONGEST_LEASE_MS:
            raise InvalidSubscription(
                f"lease_ttl_ms is a whole number from {SHORTEST_LEASE_MS} to {LONGEST_LEASE_MS}"
            )
        try:
            return cls(
                kind,  # type: ignore[arg-type]
                None if pattern is None else str(Pattern.parse(pattern)),
                streams,
                _url(document) if kind == "webhook" else None,
                _wake_stream(document) if kind == "pull-wake" else None,
                _task(document) if kind == "celery" else None,
                _text(document, "queue", 255) if kind == "celery" else None,
                lease,
                _text(document, "description", _MAX_DESCRIPTION),
            )
        except InvalidName as error:
            raise InvalidSubscription(str(error)) from None

    @classmethod
    def load(cls, text: str | bytes) -> Configuration:
        """The configuration that :meth:`dump` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "streams": tuple(fields["streams"])})

    def dump(self) -> str:
        """As text, the same for the same configuration."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        """What two equal configurations have in common, and no others."""
        return hashlib.sha256(self.dump().encode("utf-8", "surrogatepass")).hexdigest()


def check_id(subscription_id: str) -> str:
    """``subscription_id`` if it can be one. Raises :class:`InvalidSubscription`."""
    try:
        return check_name(subscription_id, "subscription id")
    except InvalidName as error:
        raise InvalidSubscription(str(error)) from None


def parse_streams(value: object) -> tuple[str, ...]:
    """Paths of streams, normalized, each once. Raises :class:`InvalidSubscription`."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidSubscription("streams is a list of paths")
    if len(value) > MAX_STREAMS:
        raise InvalidSubscription(f"streams names more than {MAX_STREAMS} streams")
    try:
        return tuple(sorted({str(slot_at(path)) for path in value}))
    except InvalidName as error:
        raise InvalidSubscription(str(error)) from None


def _text(document: Mapping[str, Any], name: str, most: int) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidSubscription(f"{name} is a text of 1 to {most} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidSubscription(f"{name} holds a lone surrogate") from None
    return value


def _url(document: Mapping[str, Any]) -> str:
    webhook = document.get("webhook")
    url = _text(webhook, "url", _MAX_URL) if isinstance(webhook, dict) else None
    if url is None:
        raise InvalidSubscription("a webhook subscription has webhook.url")
    return url


def _wake_stream(document: Mapping[str, Any]) -> str:
    path = _text(document, "wake_stream", _MAX_URL)
    if path is None:
        raise InvalidSubscription("a pull-wake subscription has a wake_stream")
    slot = slot_at(path)
    if slot.scope != "path":
        raise InvalidSubscription("a wake_stream is a stream that clients created")
    return str(slot)


def _task(document: Mapping[str, Any]) -> str:
    task = _text(document, "task", 255)
    if task is None:
        raise InvalidSubscription("a celery subscription has the name of a task")
    return task
