"""What a request may look like: sizes, headers, paths, and the time its body takes."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_streams import StreamsSettings
from celery_streams.gateway.limits import (
    ClientGone,
    check_headers,
    check_path,
    check_request,
    content_length,
    read_body,
)
from celery_streams.gateway.problems import Problem
from tests.conftest import SettingsFor

SETTINGS = StreamsSettings()


def request(
    path: bytes = b"/v1/stream/runs/x/default", query: bytes = b"", *headers: tuple[bytes, bytes]
) -> dict[str, Any]:
    """An ASGI scope."""
    return {
        "type": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "headers": [(b"host", b"x"), *headers],
    }


def refused(scope: dict[str, Any], settings: StreamsSettings = SETTINGS) -> tuple[int, str]:
    """With what status and code a request is refused."""
    with pytest.raises(Problem) as caught:
        check_request(scope, settings)
    return caught.value.status, caught.value.code


# Requests


def test_requests_as_clients_send_them_pass() -> None:
    """Names with every character that is allowed, long ones, and repeated ordinary headers."""
    check_request(request(), SETTINGS)
    check_request(request(b"/v1/stream/runs/a%20b/%C3%BC?"[:-1], b"offset=-1&live=sse"), SETTINGS)
    check_request(request(b"/v1/stream/a.b/..c/...;v=1/@~!$&'()*+,="), SETTINGS)
    headers = [(b"accept", b"a"), (b"accept", b"b"), (b"x-note", b"one\ttwo"), (b"etag", b"\xfc")]
    check_request(request(b"/x", b"q=%20%c3%bc", *headers), SETTINGS)
    check_request({"path": "/\u00fc x", "headers": []}, SETTINGS)


def test_a_url_has_a_limit() -> None:
    """414; path and query count together."""
    most = SETTINGS.gateway_max_url_bytes
    check_request(request(b"/" + b"x" * 99, b"y" * (most - 101)), SETTINGS)
    assert refused(request(b"/" + b"x" * 99, b"y" * (most - 100))) == (414, "url-too-long")


def test_headers_have_a_limit() -> None:
    """431; one large one, or many small ones."""
    most = SETTINGS.gateway_max_header_bytes
    large = [(b"cookie", b"x" * most)]
    many = [(b"x-%d" % number, b"") for number in range(most // 6)]
    for headers in (large, many):
        assert refused(request(b"/x", b"", *headers)) == (431, "headers-too-large")


@pytest.mark.parametrize(
    "name",
    [
        b"content-type", b"authorization", b"if-none-match", b"content-length", b"host",
        b"stream-seq", b"Stream-Closed", b"stream-anything", b"producer-id", b"Producer-Epoch",
    ],
)  # fmt: skip
def test_a_header_that_decides_something_is_given_once(name: bytes) -> None:
    """400 for a second one, equal or not, in whatever case."""
    twice = request(b"/x", b"", (name, b"1"), (name.swapcase(), b"1"))
    assert refused(twice) == (400, "duplicate-header")


@pytest.mark.parametrize("bad", [b"\x00", b"\r", b"\n", b"\x1b", b"\x7f", b"a\r\nx: y"])
def test_header_values_have_no_control_characters(bad: bytes) -> None:
    """400: no value can add a line to a log or a header to an answer."""
    assert refused(request(b"/x", b"", (b"stream-seq", b"a" + bad))) == (400, "bad-header")


@pytest.mark.parametrize("value", [b"", b"-1", b"+1", b"1.0", b"0x1", b"1, 1", b"\xb2", b"9" * 40])
def test_a_content_length_is_a_number(value: bytes) -> None:
    """400 for everything else that ``int`` or a proxy might accept."""
    assert refused(request(b"/x", b"", (b"Content-Length", value))) == (400, "bad-header")
    assert content_length([(b"Content-Length", b"012")]) == 12
    assert content_length([(b"host", b"x")]) is None


def test_a_body_is_framed_in_one_way() -> None:
    """400 for a length beside chunks, by which requests are smuggled."""
    both = (b"content-length", b"1"), (b"transfer-encoding", b"chunked")
    assert refused(request(b"/x", b"", *both)) == (400, "bad-header")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"content-encoding", b"gzip", (415, "content-encoding")),
        (b"Content-Encoding", b"identity, br", (415, "content-encoding")),
        (b"transfer-encoding", b"gzip, chunked", (501, "transfer-encoding")),
        (b"Transfer-Encoding", b"identity", (501, "transfer-encoding")),
    ],
)
def test_a_body_comes_as_it_is(name: bytes, value: bytes, expected: tuple[int, str]) -> None:
    """A compressed one would be stored, and read, as something else: refused, not taken."""
    assert refused(request(b"/x", b"", (name, value))) == expected
    check_headers([(b"content-encoding", b"Identity"), (b"transfer-encoding", b" Chunked")], 1000)


@pytest.mark.parametrize(
    "path",
    [
        b"/a/../b", b"/..", b"/a/..", b"/./a", b"/a/.", b"/a/%2e%2e/b", b"/a/.%2E", b"/%2e/a",
        b"/a%2Fb", b"/a%2fb", b"/a%5Cb", b"/a%5cb", b"/a\\b", b"/a%00b", b"/a\x00b", b"/a%0Ab",
        b"/a%0d%0aSet-Cookie:x", b"/a%7F", b"/a\x7f", b"/a b", b"/%", b"/%2", b"/%zz", b"/%u0041",
        b"/%ff", b"/%c3", b"/%ed%a0%80", b"/%c0%af", b"/\xc3\xbc", b"/a%1bb",
    ],
)  # fmt: skip
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: bytes) -> None:
    """400: traversal, other slashes, control characters, broken escapes, what is not UTF-8."""
    assert refused(request(path)) == (400, "bad-path")


def test_a_server_that_gives_no_raw_path_is_checked_by_the_decoded_one() -> None:
    """``raw_path`` is optional in ASGI."""
    for path in ("/a/../b", "/a\\b", "/a\x00b", "/a\nb"):
        scope: dict[str, Any] = {"path": path, "raw_path": None, "headers": [], "query_string": b""}
        assert refused(scope) == (400, "bad-path")


@pytest.mark.parametrize("query", [b"a=%00", b"a=\x00", b"a=%0d%0ab", b"a=b c", b"\xff", b"%7f"])
def test_a_query_has_no_control_characters(query: bytes) -> None:
    """400, encoded or not."""
    assert refused(request(b"/x", query)) == (400, "bad-query")


@given(st.binary(max_size=60) | st.text("./%2eEfF5cC0ab\\", max_size=30).map(str.encode))
def test_a_path_that_passes_means_one_thing(path: bytes) -> None:
    """As many segments decoded as raw, printable UTF-8, and none that leads elsewhere."""
    try:
        check_path(path)
    except Problem:
        return
    raw = path.decode("ascii")
    decoded = unquote(raw, errors="strict")
    assert decoded.split("/") == [unquote(segment) for segment in raw.split("/")]
    assert not {".", ".."} & set(decoded.split("/"))
    assert not any(ord(character) < 32 or character in "\x7f\\" for character in decoded)


@given(st.lists(st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"))))
def test_every_name_passes_when_it_is_encoded(names: Sequence[str]) -> None:
    """What ``quote`` makes of printable text is a path, but for the two relative segments."""
    names = [name for name in names if name not in (".", "..")]
    check_path(("/" + "/".join(quote(name, safe="") for name in names)).encode())


# Bodies


class Client:
    """The messages of one request; after the last it is silent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.left = list(messages)

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        if self.left:
            return self.left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    """A message with some of the body."""
    return {"type": "http.request", "body": body, "more_body": more}


def read(client: Client, settings: StreamsSettings, length: int | None = None) -> bytes:
    """What :func:`read_body` makes of it."""
    return asyncio.run(read_body(client.receive, settings, length))


@pytest.fixture
def small(settings_for: SettingsFor) -> StreamsSettings:
    """Ten bytes, in a tenth of a second."""
    return settings_for(
        "redis://localhost:1/0", gateway_max_body_bytes=10, gateway_body_timeout=0.1
    )


def test_a_body_is_put_together(small: StreamsSettings) -> None:
    """From one message or several, up to the very limit; none is an empty one."""
    assert read(Client(part(b"0123456789", more=False)), small, 10) == b"0123456789"
    assert read(Client(part(b"0123"), part(b""), part(b"456789", more=False)), small) == (
        b"0123456789"
    )
    assert read(Client({"type": "http.request"}), small) == b""


def test_a_body_that_is_announced_too_large_is_not_received(small: StreamsSettings) -> None:
    """413 before the first byte, so that a client that asks first does not send it."""
    client = Client(part(b"0123456789"), part(b"0", more=False))
    with pytest.raises(Problem) as caught:
        read(client, small, 11)
    assert (caught.value.status, len(client.left)) == (413, 2)


def test_a_body_that_grows_too_large_is_cut_off(small: StreamsSettings) -> None:
    """413 as soon as it has, whatever its length was said to be."""
    client = Client(part(b"012345"), part(b"67890"), part(b"1", more=False))
    with pytest.raises(Problem) as caught:
        read(client, small, 3)
    assert (caught.value.status, caught.value.headers["connection"]) == (413, "close")
    assert len(client.left) == 1


def test_a_body_that_does_not_come_is_not_waited_for(small: StreamsSettings) -> None:
    """408 after the whole time, also when a byte comes now and then."""
    with pytest.raises(Problem) as caught:
        read(Client(part(b"0")), small)
    assert (caught.value.status, caught.value.code) == (408, "body-too-slow")

    async def dripping() -> dict[str, Any]:
        await asyncio.sleep(0.03)
        return part(b"")

    with pytest.raises(Problem) as caught:
        asyncio.run(read_body(dripping, small))
    assert caught.value.status == 408


def test_a_client_that_leaves_is_not_answered(small: StreamsSettings) -> None:
    """What it sent is not taken for the whole."""
    with pytest.raises(ClientGone):
        read(Client(part(b"0"), {"type": "http.disconnect"}), small)


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_it_has_bytes(
    settings_for: SettingsFor,
) -> None:
    """A million one-byte messages do not become a million objects."""
    size = 200_000
    settings = settings_for("redis://localhost:1/0", gateway_max_body_bytes=size)
    left = size

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        return part(bytes([left % 251]), more=left > 0)

    tracemalloc.start()
    try:
        assert len(asyncio.run(read_body(receive, settings))) == size
        assert tracemalloc.get_traced_memory()[1] < 4 * size
    finally:
        tracemalloc.stop()
