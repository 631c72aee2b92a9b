"""The application of ``make demo-chat``: the built page, and the gateway below a prefix.

``uvicorn example_project.chat_site:app`` serves it; ``EXAMPLE_CHAT_PAGE`` names another directory
with the built page. Everybody who can connect may use every chat: an application of
yours gives each user ``streams.session(id).token(ttl)`` for the sessions that are theirs.
"""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path
from typing import Any

from celery_streams.gateway import create_app
from example_project.app import streams

PREFIX = "/streams"
PAGE_VARIABLE = "EXAMPLE_CHAT_PAGE"
BUILT = Path(__file__).resolve().parent.parent / "build" / "chat_page"

_page = Path(os.environ.get(PAGE_VARIABLE) or BUILT)
#: Read once: what is not among them is not served, whatever a path says.
_files = {
    "/" + file.relative_to(_page).as_posix(): file.read_bytes()
    for file in _page.rglob("*")
    if file.is_file()
}
_gateway = create_app(
    streams, insecure=True, agents={"assistant": "example_project.tasks.assistant"}
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: the gateway's requests and its lifespan are the gateway's, the rest is the page."""
    if scope["type"] == "lifespan":
        await _gateway(scope, receive, send)
    elif scope["path"].startswith(PREFIX + "/"):
        await _gateway({**scope, "root_path": PREFIX}, receive, send)
    elif scope["type"] == "http":
        path = "/index.html" if scope["path"] == "/" else scope["path"]
        body = _files.get(path, b"not found")
        kind = mimetypes.guess_type(path)[0] if path in _files else "text/plain"
        headers = [(b"content-type", (kind or "application/octet-stream").encode())]
        status = 200 if path in _files else 404
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
