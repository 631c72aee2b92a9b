"""What a request may look like, checked before anything else sees it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from celery_streams.gateway.problems import Problem
from celery_streams.settings import StreamsSettings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Iterable[tuple[bytes, bytes]]

#: Headers that mean something different to whoever reads the first and whoever reads the last.
_SINGLE = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"if-none-match"}
)
_SINGLE_PREFIXES = (b"stream-", b"producer-")

# Tabs are allowed in a header's value, and nothing else below the blank (RFC 9110, 5.5).
_HEADER_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_A_URL = re.compile(rb"[^\x21-\x7e]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_CONTROL = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff])")
_OTHER_SLASHES = re.compile(rb"\\|%2[Ff]|%5[Cc]")
_SUBSCRIBED = re.compile(rb"(/v1/stream/__ds/subscriptions/[^/]+/streams/)(.+)", re.DOTALL)
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")


#: Bodies are stored as they come. Taken as they are, encoded ones would be read as something else.
_AS_IT_IS = {
    b"content-encoding": (b"", b"identity"),
    b"transfer-encoding": (b"chunked",),
}


class ClientGone(Problem):
    """The client has left before its request was complete; nobody waits for an answer."""

    def __init__(self) -> None:
        super().__init__(499, "client-gone", "the client has disconnected")


class BodyTooLarge(Problem):
    """The body is larger than the gateway takes; ``unread``: some of it is still to come."""

    def __init__(self, most: int, *, unread: bool) -> None:
        super().__init__(
            413,
            "body-too-large",
            f"the body is larger than {most} bytes; send it in several requests",
            headers={"Connection": "close"},  # what is still on its way is not waited for
        )
        self.unread = unread


def check_request(scope: Mapping[str, Any], settings: StreamsSettings) -> None:
    """Refuse a request (an ASGI ``scope``) that is too large or could mean two things.

    Raises:
        Problem: 414 (URL), 431 (headers) or 400; 415 or 501 for an encoding.
    """
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope.get("query_string") or b""
    size = len(path) + len(query) + 1
    if size > settings.gateway_max_url_bytes:
        raise Problem(
            414, "url-too-long",
            f"the URL has {size} bytes; the limit is {settings.gateway_max_url_bytes}",
        )  # fmt: skip
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    check_headers(headers, settings.gateway_max_header_bytes)
    _check_host(headers, scope.get("http_version"))
    check_path(_control_path(path, scope.get("root_path") or ""))
    if _NOT_IN_A_URL.search(query) or _ENCODED_CONTROL.search(query):
        raise Problem(400, "bad-query", "the query contains a control or another bad character")


def _check_host(headers: Headers, version: str | None) -> None:
    """RFC 9112, 3.2: HTTP/1.1 names its host, once, and as a URL would."""
    host = next((value for name, value in headers if name.lower() == b"host"), None)
    if host is None:
        if version == "1.1":
            raise Problem(400, "host-missing", "a request of HTTP/1.1 needs the header Host")
    elif not _HOST.fullmatch(host):
        raise Problem(400, "bad-header", "the header 'host' is not a host with or without a port")


def _control_path(path: bytes, root: str) -> bytes:
    """``path`` with slashes in place of the encoded ones where the protocol has these: below the
    explicit streams of a subscription (PROTOCOL 6.4)."""
    match = _SUBSCRIBED.match(path.removeprefix(quote(root).encode()))
    if match is None:
        return path
    tail = match[2].replace(b"%2F", b"/").replace(b"%2f", b"/")
    return match[1] + tail


def check_headers(headers: Headers, most_bytes: int) -> None:
    """Refuse headers that are too large, given twice, or hold control characters.

    Raises:
        Problem: 431 or 400; 415 or 501 for an encoding.
    """
    size, seen = 0, set()
    for name, value in headers:
        size += len(name) + len(value) + 4  # a colon, a blank and the end of the line
        name = name.lower()
        if _HEADER_CONTROL.search(value):
            raise Problem(400, "bad-header", f"the header {_shown(name)} has a control character")
        if name in seen and (name in _SINGLE or name.startswith(_SINGLE_PREFIXES)):
            raise Problem(400, "duplicate-header", f"the header {_shown(name)} is given twice")
        seen.add(name)
        if name in _AS_IT_IS and value.strip().lower() not in _AS_IT_IS[name]:
            raise _encoded(name)
    if size > most_bytes:
        raise Problem(
            431, "headers-too-large", f"the headers have {size} bytes; the limit is {most_bytes}"
        )
    if {b"content-length", b"transfer-encoding"} <= seen:  # RFC 9112, 6.1: somebody smuggles
        raise Problem(400, "bad-header", "Content-Length and Transfer-Encoding exclude each other")
    content_length(headers)


def check_path(path: bytes) -> None:
    """Refuse a raw path that two parties might read differently.

    Raises:
        Problem: 400.
    """
    if _OTHER_SLASHES.search(path):
        raise _bad_path("contains an encoded slash or a backslash, which no name may contain")
    if _NOT_IN_A_URL.search(path) or _ENCODED_CONTROL.search(path):
        raise _bad_path("contains a control character, or one that must be percent-encoded")
    if _BAD_ESCAPE.search(path):
        raise _bad_path("contains a '%' without two hexadecimal digits after it")
    decoded = unquote_to_bytes(path)
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise _bad_path("is not UTF-8") from None
    if not {b".", b".."}.isdisjoint(decoded.split(b"/")):
        raise _bad_path("has a segment '.' or '..', also if it is percent-encoded")


def content_length(headers: Headers) -> int | None:
    """The ``Content-Length``, if there is one.

    Raises:
        Problem: 400; it is no number.
    """
    for name, value in headers:
        if name.lower() == b"content-length":
            if not _DIGITS.fullmatch(value):
                raise Problem(400, "bad-header", "Content-Length is not a number of bytes")
            return int(value)
    return None


async def read_body(
    receive: Receive, settings: StreamsSettings, content_length: int | None = None
) -> bytes:
    """The whole body of a request.

    ``content_length`` refuses one that is too large before any of it is received.

    Raises:
        Problem: 413, too large; 408, not complete after ``gateway_body_timeout`` seconds.
        ClientGone: it disconnected meanwhile.
    """
    most = settings.gateway_max_body_bytes
    if content_length is not None and content_length > most:
        raise BodyTooLarge(most, unread=True)
    try:
        async with asyncio.timeout(settings.gateway_body_timeout):
            return await _received(receive, most)
    except TimeoutError:
        raise Problem(
            408,
            "body-too-slow",
            f"the body was not complete after {settings.gateway_body_timeout:g} seconds",
            headers={"Connection": "close"},
        ) from None


async def _received(receive: Receive, most: int) -> bytes:
    body = bytearray()  # not a list: an object for each byte of a chunked body is an attack
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            raise BodyTooLarge(most, unread=message.get("more_body", False))
        if not message.get("more_body", False):
            return bytes(body)


def _encoded(name: bytes) -> Problem:
    if name == b"transfer-encoding":
        text = "Transfer-Encoding must be chunked, and nothing besides"
        return Problem(501, "transfer-encoding", text, headers={"Connection": "close"})
    text = "send the body as it is, without a Content-Encoding"
    return Problem(415, "content-encoding", text, headers={"Accept-Encoding": "identity"})


def _bad_path(problem: str) -> Problem:
    return Problem(400, "bad-path", f"the path {problem}")


def _shown(name: bytes) -> str:
    return ascii(name[:60].decode("latin-1"))
