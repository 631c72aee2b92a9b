"""Who asks, and whether they may: :class:`Gate`; what no log may show: :class:`RedactTokens`."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote_plus

from celery_streams.errors import ConfigurationError, TokenRejected
from celery_streams.gateway.problems import Problem
from celery_streams.settings import ENV_PREFIX, StreamsSettings
from celery_streams.tokens import UNRESTRICTED, Access, Action, Tokens
from celery_streams.tokens import scope as make_scope
from celery_streams.tokens.jwts import MAX_TTL

logger = logging.getLogger("celery_streams.gateway")

_REALM = 'Bearer realm="celery-streams"'
#: RFC 6750, section 2.1 (``b64token``).
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
#: Seconds after which a client that has too many connections may try again.
_RETRY_AFTER = 5

# "token", each letter as itself or percent-encoded, however often that was done again.
_NAME = "".join(
    f"(?:{letter}|%(?:25)*{ord(letter):02x}|%(?:25)*{ord(letter.upper()):02x})"
    for letter in "token"
)
_START = rf"({_NAME}(?:=|%(?:25)*3d))"
#: In a query a token ends where its parameter does; in a sentence, with the word.
_IN_QUERY = re.compile(_START + r"[^&]*", re.IGNORECASE)
_IN_QUERY_BYTES = re.compile(_IN_QUERY.pattern.encode(), re.IGNORECASE)
_IN_TEXT = re.compile(_START + r"\s*[^&\s]*", re.IGNORECASE)
#: A token by the looks of it, wherever it stands: after "Bearer", or a JWT (``{"`` is ``eyJ``).
_BY_LOOKS = re.compile(
    r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{16,}"
    # Not within a word: a line of "eyJ-eyJ-eyJ-..." would be gone through from each of them.
    r"|(?<![A-Za-z0-9_=-])eyJ[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*",
    re.IGNORECASE,
)
_HIDDEN = "[hidden]"
#: Loggers that servers write requests to.
_ACCESS_LOGS = ("uvicorn.access", "uvicorn.error", "hypercorn.access", "daphne.access")


class Gate:
    """Asks every request for a token, and looks at what that allows.

    Args:
        settings: the secrets, public keys and audience.
        insecure: let everybody do everything.

    Raises:
        ConfigurationError: there is no key to check tokens with, and ``insecure`` is not set.
    """

    def __init__(self, settings: StreamsSettings, *, insecure: bool) -> None:
        self._tokens: Tokens | None = None
        # Whichever server the gateway runs under, mounted or not.
        for name in _ACCESS_LOGS:
            access_log = logging.getLogger(name)
            if not any(isinstance(each, RedactTokens) for each in access_log.filters):
                access_log.addFilter(RedactTokens())
        if insecure:
            logger.warning("insecure: whoever can connect can read, write and delete every stream")
            return
        self._tokens = Tokens(settings)
        if not self._tokens.can_verify:
            raise ConfigurationError(
                f"the gateway has no key to check tokens with: set {ENV_PREFIX}SECRET (or app.conf."
                "streams_secret) to 32 random bytes, the same where tokens are minted, or "
                f"{ENV_PREFIX}TOKEN_PUBLIC_KEYS to the keys of another issuer. To serve everybody "
                "who can connect, say so: --insecure, or create_app(streams, insecure=True)"
            )

    def access(self, scope: Mapping[str, Any]) -> Access:
        """What the sender of a request (an ASGI ``scope``) may do.

        The token is in ``Authorization: Bearer`` or, for ``EventSource`` which cannot send
        headers, in ``?token=``.

        Raises:
            Problem: 401 without a valid token; 400 for more than one.
        """
        if self._tokens is None:
            return UNRESTRICTED
        try:
            return self._tokens.verify(_token(scope))
        except TokenRejected as error:
            raise _unauthorized("token-rejected", str(error), "invalid_token") from None

    def token_for_url(self, scope: Mapping[str, Any], access: Access, resource: str) -> str | None:
        """A token for a URL that its client reads ``resource`` by; ``None`` if none is needed.

        It allows nothing else, lasts no longer than the request's own, and counts as that one
        against the limit of connections. Who checks other issuers' tokens only cannot sign
        one: then it is the request's own.
        """
        if self._tokens is None:
            return None
        if not self._tokens.can_mint:
            return _token(scope)
        left = max(1.0, access.expires_at - time.time())
        return self._tokens.mint(
            [make_scope("read", *resource.split("/"))],
            min(left, MAX_TTL),
            subject=access.subject,
            token_id=access.token_id,
        )

    def require(self, access: Access, action: Action, resource: str) -> None:
        """Let ``action`` on ``resource`` pass if ``access`` allows it.

        Raises:
            Problem: 403.
        """
        if not access.allows(action, resource):
            raise self.refusal(f"{action}:{quote(resource, safe='/-._~')}")

    def refusal(self, needed: str) -> Problem:
        """What to tell somebody who lacks the scope ``needed``."""
        return Problem(
            403,
            "forbidden",
            f"the token does not allow {needed}",
            headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{needed}"'},
        )


class ConnectionLimit:
    """Counts what each token has open, in this process, on its one event loop.

    ::

        with limit.held(access):
            ...  # answer, as long as it takes
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @property
    def tokens(self) -> int:
        """How many tokens have something open."""
        return len(self._open)

    @contextmanager
    def held(self, access: Access) -> Iterator[None]:
        """Count one connection. Without tokens there is nobody to count it against.

        Raises:
            Problem: 429; the token has as many as it may.
        """
        token_id = access.token_id
        if not token_id:
            yield
            return
        if self._open[token_id] >= self._most:
            raise Problem(
                429,
                "too-many-connections",
                f"the token has {self._most} live reads open; close some, or use another token",
                headers={"Retry-After": str(_RETRY_AFTER)},
            )
        self._open[token_id] += 1
        try:
            yield
        finally:
            self._open[token_id] -= 1
            if not self._open[token_id]:
                del self._open[token_id]


def redacted(query_string: bytes) -> bytes:
    """``query_string`` without its tokens, however their parameter's name is spelled.

    Hides the value of every parameter whose name ends in ``token``, also inside of another
    parameter's value: too much rather than too little.
    """
    return _IN_QUERY_BYTES.sub(rb"\1" + _HIDDEN.encode(), query_string)


class RedactTokens(logging.Filter):
    """For loggers of servers (``uvicorn.access``): no line shows a token.

    ::

        logging.getLogger("uvicorn.access").addFilter(RedactTokens())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace tokens in the message and its arguments; every record passes."""
        message = str(record.msg)
        if _text(message) != message:  # perhaps "token=%s": only the whole can be redacted
            record.msg, record.args = _text(record.getMessage()), None
        elif isinstance(record.args, tuple):
            record.args = tuple(_argument(each) for each in record.args)
        elif record.args:
            record.args = {name: _argument(each) for name, each in record.args.items()}
        return True


def _argument(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes):
        return redacted(value)
    if isinstance(value, str):  # a whole URL, as servers log it
        return _without_looks(_IN_QUERY.sub(rf"\1{_HIDDEN}", value))
    text = str(value)
    clean = _text(text)
    return value if clean == text else clean


def _text(text: str) -> str:
    return _without_looks(_IN_TEXT.sub(rf"\1{_HIDDEN}", text))


def _without_looks(text: str) -> str:
    return _BY_LOOKS.sub(lambda match: (match[1] or "") + _HIDDEN, text)


def _token(scope: Mapping[str, Any]) -> str:
    """The request's one token. Raises :class:`Problem`."""
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    asked = _query_tokens(scope.get("query_string", b""))
    if len(given) + len(asked) > 1:
        raise Problem(
            400,
            "several-tokens",
            "give one token: either one Authorization header or one token parameter",
            headers={"WWW-Authenticate": f'{_REALM}, error="invalid_request"'},
        )
    if asked:
        return asked[0]
    if not given:
        raise _unauthorized(
            "token-missing", "give a token: Authorization: Bearer <token>, or ?token=<token>"
        )
    match = _BEARER.fullmatch(given[0].strip(b" \t"))
    if match is None:
        raise _unauthorized(
            "token-rejected",
            "the Authorization header is not of the form Bearer <token>",
            "invalid_token",
        )
    return match[1].decode("ascii")


def _query_tokens(query_string: bytes) -> list[str]:
    found = []
    for pair in query_string.decode("latin-1").split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name) == "token":
            found.append(unquote_plus(value))
    return found


def _unauthorized(code: str, detail: str, error: str | None = None) -> Problem:
    # RFC 6750, section 3.1: no error code where no token was sent.
    challenge = f'{_REALM}, error="{error}"' if error else _REALM
    return Problem(401, code, detail, headers={"WWW-Authenticate": challenge})
