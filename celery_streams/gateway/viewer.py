"""The page to look at: static files of this package, served with what keeps them harmless."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Scope, Send

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Where the page finds its own files, below the gateway's prefix.
_FILES = "/ui/"

#: Nothing inline, nothing from elsewhere, no way for text to become a script.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Asked for again each time, and sent only after an upgrade of this package.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class Viewer:
    """Answers ``GET /`` and the page's files. They hold no data, so they ask for no token."""

    def __init__(self) -> None:
        self._files = _load()

    def serves(self, path: str) -> bool:
        """Whether a path is the page's, or one of its files'."""
        return path == "/" or path.startswith(_FILES)

    async def __call__(self, scope: Scope, send: Send, path: str) -> None:
        """Answer a request for ``path``, one that :meth:`serves` accepts."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(
                405, "method-not-allowed", f"there is no {scope['method']} here",
                headers={"allow": "GET, HEAD"},
            )  # fmt: skip
        file = self._files.get("index.html" if path == "/" else path.removeprefix(_FILES))
        if file is None:
            raise Problem(404, "not-found", "there is nothing at this path")
        given = next((v for k, v in scope["headers"] if k == b"if-none-match"), b"")
        known = {tag.strip().removeprefix("W/") for tag in given.decode("latin-1").split(",")}
        unchanged = file.etag in known
        # Not by way of Replies: other origins have no business here, and its policy is for data.
        headers = {**_HEADERS, "content-type": file.content_type, "etag": file.etag}
        if not unchanged:
            headers["content-length"] = str(len(file.body))
        packed = [(name.encode(), value.encode()) for name, value in headers.items()]
        status = 304 if unchanged else 200
        await send({"type": "http.response.start", "status": status, "headers": packed})
        body = b"" if unchanged or scope["method"] == "HEAD" else file.body
        await send({"type": "http.response.body", "body": body})


@cache
def _load() -> dict[str, _File]:
    """All of them at once: no request chooses a file name."""
    found = {}
    for entry in files("celery_streams.gateway").joinpath("ui").iterdir():
        kind = _TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if kind is not None:
            body = entry.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:32]
            found[entry.name] = _File(body, kind, f'"{digest}"')
    return found
