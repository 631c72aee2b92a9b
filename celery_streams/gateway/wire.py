"""How a stream looks on the wire: offsets, cursors, bodies and events. Pure functions.

The protocol is Durable Streams (PROTOCOL.md); sections are cited where a rule is not obvious.
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from celery_streams.chunks import frame, unframe
from celery_streams.contracts import JSON, Entry
from celery_streams.gateway.problems import Problem
from celery_streams.stores.entries import payloads_of

#: Offsets are sequence numbers in this many digits, so that they sort as text (section 8).
_DIGITS = 16
_OFFSET = re.compile(rf"\d{{1,{_DIGITS}}}", re.ASCII)
#: The first offset of servers that count in two parts, which their clients may have kept.
_FIRST = "0000000000000000_0000000000000000"

#: Cursors count intervals of this many seconds since 2024-10-09T00:00:00Z (section 10.1).
_INTERVAL = 20
_CURSOR_EPOCH = 1728432000
_CURSOR = re.compile(r"\d{1,12}", re.ASCII)
_LARGEST_CURSOR = 10**12 - 1

#: What follows the offset in the ``id`` of the event that says that the stream is closed.
_CLOSED = "-closed"

#: Entries of a page that are joined at once.
_GROUP = 128

#: An SSE comment: keeps proxies from taking a silent stream for a dead one.
HEARTBEAT = b":\n\n"


def offset_token(offset: int) -> str:
    """An offset as clients see it."""
    return f"{offset:0{_DIGITS}d}"


def parse_offset(text: str) -> int | Literal["now"]:
    """The position an ``offset`` parameter names. Raises :class:`Problem` (400)."""
    if text in ("-1", _FIRST):
        return 0
    if text == "now":
        return "now"
    if _OFFSET.fullmatch(text):
        return int(text)
    raise Problem(400, "invalid-offset", "offset must be -1, now, or one this server has given")


def parse_event_id(text: str) -> tuple[int | Literal["now"], bool]:
    """Where a ``Last-Event-ID`` goes on, and whether its client knows that nothing follows.

    Raises:
        Problem: 400.
    """
    return parse_offset(text.removesuffix(_CLOSED)), text.endswith(_CLOSED)


def cursor(theirs: str | None, now: float | None = None) -> str:
    """The cursor after ``theirs``: never the same, never an earlier one (section 10.1).

    One that no later one could follow in 12 digits is none of ours, and begins anew.
    """
    current = int(((time.time() if now is None else now) - _CURSOR_EPOCH) // _INTERVAL)
    if theirs is None or not _CURSOR.fullmatch(theirs) or int(theirs) < current:
        return str(current)
    later = int(theirs) + random.randint(1, 3600) // _INTERVAL + 1
    return str(later if later <= _LARGEST_CURSOR else current)


def media_type(content_type: str) -> str:
    """The type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def canonical_type(content_type: str) -> str:
    """A content type as it is stored: JSON has no parameters that mean anything."""
    kind, separator, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == JSON or not separator:
        return kind
    return f"{kind};{parameters}"


def is_text(content_type: str) -> bool:
    """Whether SSE carries it as it is, not in base64 (section 5.8)."""
    return content_type == JSON or content_type.startswith("text/")


# Request bodies


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may append: bytes of a chunk, messages of a JSON array."""

    chunk: int
    messages: int


def split_body(body: bytes, content_type: str, limits: Limits) -> list[bytes]:
    """The chunks of a request body.

    A JSON array is taken apart, one level (section 9.1.2); any other type has no boundaries,
    so what is too large for one chunk becomes several. Text is cut between characters, so that
    each chunk can be shown by itself.
    """
    if content_type == JSON:
        return _split_json(body, limits)
    chunks, at = [], 0
    while at < len(body):
        end = at + limits.chunk
        if is_text(content_type):
            end = _between_characters(body, at, end)
        chunks.append(body[at:end])
        at = end
    return chunks


def _between_characters(body: bytes, start: int, end: int) -> int:
    """The last place up to ``end`` where UTF-8 can be cut; ``end`` itself if it is not UTF-8."""
    for at in range(end, max(start, end - 4), -1):
        if at >= len(body) or body[at] & 0b1100_0000 != 0b1000_0000:
            return at
    return end


def _split_json(body: bytes, limits: Limits) -> list[bytes]:
    """The messages, each exactly as it was sent (numbers keep their digits), on one line."""
    try:
        text = body.decode()
        decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str)
        spans = list(islice(_messages(text, decoder), limits.messages + 1))
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid-json", f"the body is not valid JSON: {error}") from None
    if len(spans) > limits.messages:
        raise Problem(
            413,
            "too-many-messages",
            f"the body has more than {limits.messages} messages; send them in several requests",
        )
    # Valid JSON has line ends between its tokens only.
    messages = [span.replace("\r", " ").replace("\n", " ").encode() for span in spans]
    for message in messages:
        if len(message) > limits.chunk:
            raise Problem(
                413,
                "message-too-large",
                f"a message has {len(message)} bytes; the limit is {limits.chunk}",
            )
    return messages


def _messages(text: str, decoder: json.JSONDecoder) -> Iterable[str]:
    at = _blank(text, 0)
    if not text.startswith("[", at):
        end = decoder.raw_decode(text, at)[1]
        _expect_end(text, end)
        yield text[at:end]
        return
    at = _blank(text, at + 1)
    if text.startswith("]", at):
        _expect_end(text, at + 1)
        return
    while True:
        end = decoder.raw_decode(text, at)[1]
        yield text[at:end]
        at = _blank(text, end)
        if text.startswith("]", at):
            _expect_end(text, at + 1)
            return
        if not text.startswith(",", at):
            raise ValueError(f"expected ',' or ']' at character {at}")
        at = _blank(text, at + 1)


_BLANK = re.compile(r"[ \t\r\n]*")


def _blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _expect_end(text: str, at: int) -> None:
    if _blank(text, at) != len(text):
        raise ValueError(f"something follows the value, at character {at}")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Response bodies and events


def payload_from(entry: Entry, offset: int, content_type: str) -> bytes:
    """The entry's framed chunks from ``offset`` on."""
    if offset <= entry.start:
        return entry.payload
    chunks = unframe(entry.payload, content_type)[offset - entry.start :]
    return frame(chunks, content_type)


def payloads_from(entries: Sequence[Entry], offset: int, content_type: str) -> list[bytes]:
    """The framed chunks from ``offset`` on, of entries that were read from there."""
    payloads = payloads_of(entries)
    if payloads:
        payloads[0] = payload_from(entries[0], offset, content_type)
    return payloads


def body_of(payloads: Sequence[bytes], content_type: str) -> bytes:
    """Framed payloads as the body of a read."""
    return b"".join(pieces_of(payloads, content_type))


def pieces_of(payloads: Sequence[bytes], content_type: str) -> list[bytes]:
    """The body of a read, in pieces that are not large unless an entry is.

    Memory that is new to the process, as a large piece has it, costs more than copying does.
    """
    groups = [payloads[at : at + _GROUP] for at in range(0, len(payloads), _GROUP)]
    if content_type == JSON:
        pieces, begin = [], b"["
        for group in groups:
            pieces.append(begin + b",".join(group).replace(b"\n", b","))
            begin = b","
        if not pieces:
            return [b"[]"]
        pieces[-1] += b"]"  # a piece of its own would be a packet of its own
        return pieces
    return [
        b"".join(chunk for payload in group for chunk in unframe(payload, content_type))
        for group in groups
    ]


def data_event(payloads: Sequence[bytes], content_type: str, end: int) -> bytes:
    """Framed payloads that end at ``end`` as one SSE ``data`` event.

    It has the ``id`` of the control event behind it: an ``EventSource`` whose connection breaks
    between the two has the data, and must not get it again.
    """
    body, token = body_of(payloads, content_type), offset_token(end).encode()
    if content_type == JSON:
        return b"event: data\ndata:%b\nid:%b\n\n" % (body, token)
    if not is_text(content_type):
        return b"event: data\ndata:%b\nid:%b\n\n" % (base64.b64encode(body), token)
    # Every kind of line end that an EventSource knows ends a field (HTML, section 9.2.6).
    text = body.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = "".join(
        f"data: {line}\n" if line.startswith(" ") else f"data:{line}\n" for line in text.split("\n")
    )
    return f"event: data\n{lines}id:{offset_token(end)}\n\n".encode()


def control_event(
    end: int,
    *,
    cursor: str | None,
    up_to_date: bool,
    closed: bool = False,
    run_state: str | None = None,
) -> bytes:
    """The SSE ``control`` event after data that ends at ``end``.

    Its ``id`` is the offset, so that an ``EventSource`` that reconnects by itself says where it
    stood, and whether it was told that the stream is closed. ``runState`` is ours (section 11.1).
    """
    # Written by hand: once an entry, this was a third of what fanning it out costs. Offsets and
    # cursors are digits.
    token = offset_token(end)
    way = '"streamClosed":true' if closed else f'"streamCursor":"{cursor}"'
    fresh = ',"upToDate":true' if up_to_date else ""
    state = "" if run_state is None else f',"runState":{json.dumps(run_state)}'
    told = _CLOSED if closed else ""
    return (
        f'event: control\ndata:{{"streamNextOffset":"{token}",{way}{fresh}{state}}}\n'
        f"id:{token}{told}\n\n"
    ).encode()
