"""Headers and bodies of the protocol's requests, checked and turned into operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import parse_qsl

from celery_streams.contracts import JSON
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Scope
from celery_streams.gateway.targets import Target
from celery_streams.gateway.wire import Limits, canonical_type, parse_offset, split_body
from celery_streams.protocol import ClientProducer, Creation, ForkPoint, Lifetime, Post

BINARY = "application/octet-stream"

_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+\s*(;.*)?", re.ASCII)
_WHOLE = re.compile(r"0|[1-9]\d*", re.ASCII)
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
#: Producers count like JavaScript does.
_LARGEST = 2**53 - 1
#: The longest sliding lifetime, seconds: a century.
_LONGEST_TTL = 100 * 365 * 86400

_MAX_TOKEN_BYTES = 256

Headers = Mapping[str, str]


def headers_of(scope: Scope) -> Headers:
    """The headers of a request; of several with one name the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def query_of(scope: Scope) -> dict[str, str]:
    """The parameters; only unknown ones may be given twice. Raises :class:`Problem` (400)."""
    parameters: dict[str, str] = {}
    text = scope.get("query_string", b"").decode("latin-1")
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise Problem(400, "bad-query", "the query has too many parameters") from None
    for name, value in fields:
        if name in parameters and name in ("offset", "live", "cursor"):
            raise Problem(400, "duplicate-parameter", f"{name} is given twice")
        parameters[name] = value
    if parameters.get("offset") == "":
        raise Problem(400, "invalid-offset", "offset is empty")
    return parameters


def parse_creation(
    headers: Headers, body: bytes, target: Target, limits: Limits, source: Callable[[str], Target]
) -> Creation:
    """What a ``PUT`` asks for. ``source`` resolves the path of a fork's source."""
    fork = _fork(headers, source)
    content_type = media_type(headers)
    if content_type is None and fork is None:
        content_type = BINARY if target.slot.scope == "path" else JSON
    if body and content_type is None:
        raise Problem(400, "missing-content-type", "a fork with a body needs its Content-Type")
    lifetime = _lifetime(headers)
    if target.slot.scope != "path" and lifetime != Lifetime():
        raise Problem(
            400, "invalid-lifetime", "streams of runs and sessions live as long as the server says"
        )
    chunks = split_body(body, content_type, limits) if body and content_type else []
    return Creation(content_type, chunks, lifetime, is_true(headers, "stream-closed"), fork)


def parse_post(headers: Headers, body: bytes, limits: Limits) -> Post:
    """What a ``POST`` asks for."""
    producer = _producer(headers)
    close = is_true(headers, "stream-closed")
    stream_seq = headers.get("stream-seq")
    if stream_seq is not None:
        _check_token("Stream-Seq", stream_seq)
    if not body:
        if not close:
            raise Problem(400, "empty-body", "there is nothing to append, and no Stream-Closed")
        return Post(None, (), close, stream_seq, producer)
    content_type = media_type(headers)
    if content_type is None:
        raise Problem(400, "missing-content-type", "an append needs the stream's Content-Type")
    chunks = split_body(body, content_type, limits)
    if not chunks:
        raise Problem(400, "empty-array", "an empty JSON array appends nothing")
    return Post(content_type, chunks, close, stream_seq, producer)


def is_true(headers: Headers, name: str) -> bool:
    """Whether a header says ``true``; any other value is as good as none (PROTOCOL 4.1)."""
    return headers.get(name, "").strip().lower() == "true"


def media_type(headers: Headers) -> str | None:
    """The ``Content-Type``, canonical; ``None`` if there is none."""
    value = headers.get("content-type", "").strip()
    if not value:
        return None
    if len(value) > _MAX_TOKEN_BYTES or not _MEDIA_TYPE.fullmatch(value):
        raise Problem(400, "invalid-content-type", "Content-Type must be type/subtype")
    return canonical_type(value)


def _lifetime(headers: Headers) -> Lifetime:
    ttl, expires_at = headers.get("stream-ttl"), headers.get("stream-expires-at")
    if ttl is not None and expires_at is not None:
        raise Problem(400, "invalid-lifetime", "give Stream-TTL or Stream-Expires-At, not both")
    if ttl is not None and (not _WHOLE.fullmatch(ttl) or int(ttl) > _LONGEST_TTL):
        raise Problem(
            400, "invalid-lifetime", f"Stream-TTL must be a number of seconds, 0 to {_LONGEST_TTL}"
        )
    if expires_at is not None:
        try:
            if not _TIMESTAMP.fullmatch(expires_at):
                raise ValueError
            datetime.fromisoformat(expires_at.upper())
        except ValueError:
            raise Problem(
                400, "invalid-lifetime", "Stream-Expires-At must be an RFC 3339 timestamp"
            ) from None
    return Lifetime(None if ttl is None else int(ttl), expires_at)


def _fork(headers: Headers, source: Callable[[str], Target]) -> ForkPoint | None:
    reference = headers.get("stream-forked-from")
    offset, sub_offset = headers.get("stream-fork-offset"), headers.get("stream-fork-sub-offset")
    if reference is None:
        if offset is not None or sub_offset is not None:
            raise Problem(
                400, "invalid-fork", "a fork's offset needs Stream-Forked-From, the stream it is of"
            )
        return None
    position = None if offset is None else parse_offset(offset)
    if position == "now":
        position = None
    if sub_offset is not None and (not _WHOLE.fullmatch(sub_offset) or int(sub_offset) > _LARGEST):
        raise Problem(400, "invalid-fork", "Stream-Fork-Sub-Offset must be a whole number")
    further = int(sub_offset or 0)
    if further and position is None:
        raise Problem(400, "invalid-fork", "Stream-Fork-Sub-Offset needs a Stream-Fork-Offset")
    return ForkPoint(source(reference).slot, position, further)


def _producer(headers: Headers) -> ClientProducer | None:
    names = ("producer-id", "producer-epoch", "producer-seq")
    producer_id, epoch, seq = (headers.get(name) for name in names)
    if producer_id is None and epoch is None and seq is None:
        return None
    if producer_id is None or epoch is None or seq is None:
        raise Problem(
            400, "invalid-producer", "give all of Producer-Id, Producer-Epoch and Producer-Seq"
        )
    _check_token("Producer-Id", producer_id)
    return ClientProducer(producer_id, _whole("Producer-Epoch", epoch), _whole("Producer-Seq", seq))


def _whole(name: str, value: str) -> int:
    if not _WHOLE.fullmatch(value) or int(value) > _LARGEST:
        raise Problem(400, "invalid-producer", f"{name} must be a whole number up to 2^53-1")
    return int(value)


def _check_token(name: str, value: str) -> None:
    if not 0 < len(value) <= _MAX_TOKEN_BYTES:
        raise Problem(400, "invalid-header", f"{name} must have 1 to {_MAX_TOKEN_BYTES} characters")
