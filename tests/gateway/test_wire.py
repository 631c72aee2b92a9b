"""Parsers and formatters of the wire, against what they must agree with."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_streams.chunks import frame
from celery_streams.contracts import JSON, Entry
from celery_streams.gateway import wire
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.requests import parse_creation, parse_post
from celery_streams.gateway.targets import parse_reference, parse_target

T = TypeVar("T")
LIMIT = wire.Limits(1 << 20, 1000)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
blanks = st.text(" \t\r\n", max_size=3)
#: Pieces of which JSON is made, and some of which it is not.
tokens = st.lists(
    st.sampled_from(
        ["[", "]", "{", "}", ",", ":", '"', "\\", "null", "true", "-", "1", "0", ".", "e", "+", " ",
         "\n", "\r", "\t", "NaN", "Infinity", '"a"', "\u2028", "\x00", "\ufeff", "\\u0000", "1e999"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def attempt(call: Callable[[], T], *statuses: int) -> T | None:
    """What ``call()`` returns; ``None`` if it refuses, with one of the ``statuses``."""
    try:
        return call()
    except Problem as problem:
        if problem.status in statuses:
            return None
        raise


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def parsed(text: str | bytes) -> Any:
    """What JSON says, with the digits of numbers and every pair of an object."""
    return json.loads(
        text, parse_int=str, parse_float=str, parse_constant=refuse, object_pairs_hook=list
    )


@given(values, blanks, st.booleans(), st.sampled_from([None, 0, 2]))
def test_messages_are_the_values_of_the_body(
    value: Any, blank: str, ascii_only: bool, indent: int | None
) -> None:
    """Messages are the values of the body."""
    text = blank + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + blank
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    chunks = wire.split_body(body, JSON, LIMIT)
    expected = parsed(text)
    assert [parsed(chunk) for chunk in chunks] == (
        expected if isinstance(value, list) else [expected]
    )
    assert not any(b"\n" in chunk or b"\r" in chunk for chunk in chunks)


@given(tokens)
@example("[1,]")
@example("[,1]")
@example("[1 2]")
@example("[]]")
@example("[" * 20_000)
@example('{"a": 1, "a": 2}')
@example("123456789012345678901234567890.00")
@example("[" + "9" * 6000 + "]")
@example('"\\ud800"')
@example("-0.0e-00")
def test_what_is_json_is_taken_and_nothing_else(text: str) -> None:
    """What is JSON is taken and nothing else."""
    try:
        expected = parsed(text)
    except (ValueError, RecursionError):
        with pytest.raises(Problem) as problem:
            wire.split_body(text.encode(), JSON, LIMIT)
        assert problem.value.status == 400
        return
    chunks = wire.split_body(text.encode(), JSON, LIMIT)
    if text.strip(" \t\r\n").startswith("["):
        assert [parsed(chunk) for chunk in chunks] == expected
    else:
        assert [parsed(chunk) for chunk in chunks] == [expected]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json(body: bytes) -> None:
    """Bytes that are no JSON."""
    chunks = attempt(lambda: wire.split_body(body, JSON, LIMIT), 400)
    assert all(parsed(chunk) is not ... for chunk in chunks or ())


def test_a_body_has_so_many_messages() -> None:
    """One more is 413, told before the rest is looked at: everybody waits meanwhile."""
    limits = wire.Limits(10, 3)
    assert wire.split_body(b"[1,2,3]", JSON, limits) == [b"1", b"2", b"3"]
    with pytest.raises(Problem) as caught:
        wire.split_body(b"[1,2,3,4,what is no JSON", JSON, limits)
    assert (caught.value.status, caught.value.code) == (413, "too-many-messages")


@given(st.text(max_size=100), st.integers(4, 50))
@example("\U0001f600" * 20, 5)
def test_text_is_cut_between_characters(text: str, limit: int) -> None:
    """Every chunk of a text can be shown by itself, and none is larger than allowed."""
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    chunks = wire.split_body(body, "text/plain;charset=utf-8", wire.Limits(limit, 1))
    assert "".join(chunk.decode() for chunk in chunks) == text
    assert all(limit - 3 <= len(chunk) <= limit for chunk in chunks[:-1])


@given(st.binary(max_size=60), st.integers(1, 10))
@example(b"\x80" * 30, 5)
def test_text_that_is_none_is_cut_all_the_same(body: bytes, limit: int) -> None:
    """Bytes that are no UTF-8, or a limit below a character: nothing is lost or too large."""
    chunks = wire.split_body(body, "text/plain", wire.Limits(limit, 1))
    assert b"".join(chunks) == body
    assert all(0 < len(chunk) <= limit for chunk in chunks)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_bytes_are_cut_and_put_together(body: bytes, limit: int) -> None:
    """Bytes are cut and put together."""
    chunks = wire.split_body(body, "application/octet-stream", wire.Limits(limit, 1))
    assert b"".join(chunks) == body
    assert all(0 < len(chunk) <= limit for chunk in chunks)


def events(stream: bytes) -> list[tuple[str, str]]:
    """What an EventSource makes of it (HTML, section 9.2.6)."""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    found: list[tuple[str, str]] = []
    kind, data = "", list[str]()
    for line in text.split("\n"):
        if not line:
            if data:
                found.append((kind, "\n".join(data)))
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
    return found


@given(st.lists(values, min_size=1, max_size=5))
def test_events_of_json(several: list[Any]) -> None:
    """Events of JSON."""
    try:
        chunks = wire.split_body(json.dumps(several, ensure_ascii=False).encode(), JSON, LIMIT)
    except UnicodeEncodeError:
        return
    event = wire.data_event([frame(chunks, JSON)], JSON, 5)
    ((kind, data),) = events(event)
    assert kind == "data"
    assert parsed(data) == parsed(json.dumps(several))


@given(st.lists(st.text().filter(bool), min_size=1, max_size=5))
@example([" leading", "\n\n", "data: x\n\nevent: control"])
@example(["\r", "\n", "\r\n"])
def test_events_of_text(texts: list[str]) -> None:
    """Events of text."""
    try:
        chunks = [text.encode() for text in texts]
    except UnicodeEncodeError:
        return
    event = wire.data_event([frame(chunks, "text/plain")], "text/plain", 5)
    ((kind, data),) = events(event)
    assert kind == "data"
    assert data == "".join(texts).replace("\r\n", "\n").replace("\r", "\n")


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=5))
def test_events_of_bytes(chunks: list[bytes]) -> None:
    """Events of bytes."""
    kind = "application/octet-stream"
    event = wire.data_event([frame(chunks, kind)], kind, 5)
    ((name, data),) = events(event)
    assert name == "data"
    assert base64.b64decode(data, validate=True) == b"".join(chunks)


@given(
    st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=8),
    st.integers(0, 100),
    st.integers(0, 8),
    st.sampled_from(["application/octet-stream", "text/plain"]),
)
def test_an_entry_from_its_middle(
    chunks: list[bytes], start: int, skip: int, content_type: str
) -> None:
    """An entry from its middle."""
    entry = Entry(start + len(chunks), len(chunks), frame(chunks, content_type))
    payload = wire.payload_from(entry, start + skip, content_type)
    assert wire.body_of([payload], content_type) == b"".join(chunks[skip:])


@given(st.text(max_size=20) | st.from_regex(r"\d{1,18}|-\d", fullmatch=True))
@example("0000000000000000_0000000000000000")
@example("²")
@example("\uff11")
@example("-1\n")
@example("1\n")
def test_an_offset_is_a_number_or_refused(text: str) -> None:
    """An offset is a number or refused."""
    offset = attempt(lambda: wire.parse_offset(text), 400)
    if offset not in (None, "now"):
        assert 0 <= int(offset or 0) < 10**16
        assert text in ("-1", "0000000000000000_0000000000000000") or int(text) == offset
        assert wire.parse_offset(wire.offset_token(int(offset or 0))) == offset


@given(st.integers(0, 10**16 - 1), st.integers(0, 10**16 - 1))
def test_offsets_sort_as_text(one: int, other: int) -> None:
    """Offsets sort as text."""
    assert (wire.offset_token(one) < wire.offset_token(other)) == (one < other)


@given(
    st.floats(1.73e9, 4e9),
    st.text(max_size=14)
    | st.integers(0, 10**13).map(str)
    | st.integers(10**12 - 400, 10**12).map(str),
)
def test_a_cursor_is_never_one_that_was_given(now: float, theirs: str) -> None:
    """A cursor is never one that was given."""
    mine = wire.cursor(None, now)
    after = wire.cursor(mine, now)
    assert int(after) > int(mine)
    answer = wire.cursor(theirs, now)
    assert int(answer) >= int(mine)
    if theirs.isascii() and theirs.isdigit() and len(theirs) <= 12:
        starts_over = int(theirs) > 10**12 - 200
        assert int(answer) > int(theirs) or int(theirs) < int(mine) or starts_over
    assert answer != theirs
    assert len(answer) <= 12
    assert wire.cursor(answer, now) != answer
    assert math.isfinite(float(answer))


names = st.sampled_from(
    ["content-type", "stream-ttl", "stream-expires-at", "stream-closed", "stream-forked-from",
     "stream-fork-offset", "stream-fork-sub-offset", "stream-seq", "producer-id", "producer-epoch",
     "producer-seq"]
)  # fmt: skip
texts = st.sampled_from(
    ["", "0", "1", "-1", "00", "99999999999999999999", "true", "application/json",
     "text/plain; x=y", "/v1/stream/a", "/v1/stream/..", "now", "2030-01-01T00:00:00Z",
     "0001-01-01T00:00:00+23:59",
     "9999-12-31T23:59:60Z", "²", "a" * 300, "json", "9999-12-31T23:59:59-23:59"]
) | st.text(st.characters(max_codepoint=255), max_size=10)  # fmt: skip


@given(st.dictionaries(names, texts), st.sampled_from([b"", b"x", b"[]", b"[1, 2]", b"\xff"]))
def test_headers_are_understood_or_refused(headers: dict[str, str], body: bytes) -> None:
    """Headers are understood or refused."""
    for target in (parse_target("a"), parse_target("runs/a")):
        creation = attempt(
            lambda target=target: parse_creation(
                headers, body, target, LIMIT, lambda text: parse_reference(text, "")
            ),
            400,
            404,
        )
        if creation is not None:
            assert creation.lifetime.ttl is None or creation.lifetime.expires_at is None
    post = attempt(lambda: parse_post(headers, body, LIMIT), 400)
    if post is not None:
        assert post.chunks or post.close


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["runs", "sessions", "a", "..", ".", ""])).map("/".join)
)
def test_a_path_is_a_stream_or_refused(path: str) -> None:
    """A path is a stream or refused."""
    target = attempt(lambda: parse_target(path), 400, 404)
    if target is not None:
        assert not {"{", "}", "\\", "\x00"} & set(target.slot.owner + target.slot.key)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_a_page_of_json_is_one_array_however_many_entries_it_has(count: int) -> None:
    """Entries are joined in groups; nothing is missing or comes twice where they meet."""
    payloads = [b"%d\n%d" % (number, -number) for number in range(count)]
    expected = [each for number in range(count) for each in (number, -number)]
    assert json.loads(wire.body_of(payloads, JSON)) == expected
