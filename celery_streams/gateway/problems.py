"""Every answer that says no: :class:`Problem`, as a document of RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

PROBLEM_JSON = "application/problem+json"


class Problem(Exception):
    """A request that is refused, or cannot be answered: raise it, and the client is told.

    Args:
        status: the HTTP status.
        code: the reason as a word that programs compare (``"body-too-large"``).
        detail: the reason in a sentence for people. Never a token, nor anything else secret.
        headers: what the answer carries besides its content type.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        # ASGI wants lower case.
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in (headers or {}).items()}

    @property
    def title(self) -> str:
        """The status's phrase."""
        return _phrase(self.status)

    def body(self) -> bytes:
        """The problem document (RFC 9457, section 3)."""
        document = {
            "type": "about:blank",  # section 4.2.1: then the title is the status's phrase
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        return json.dumps(document).encode()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
