"""What a token allows: scopes, and the streams they cover.

A scope is an action and a resource::

    read:runs/<id>             all streams of a run, and what is known of it
    read:runs/<id>/<key>       one of them
    write:sessions/<id>        both channels of a session
    write:sessions/<id>/in     one of them
    read:streams/<path>        that stream, and none below it
    read:streams/<path>/*      those below it
    read:runs/*                every run
    read:metrics               the gateway's counters
    read:*                     everything there is to read
    admin:subscriptions/<id>   a subscription; ``write:`` claims what it wakes for
    admin:<resource>           reading, writing and administration there

Segments are compared as a whole (``runs/ab`` is not below ``runs/a``) and are percent-encoded in
a scope where they contain a blank, ``%`` or ``*``; :func:`scope` does that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, unquote

from celery_streams.errors import ConfigurationError, InvalidName
from celery_streams.slots import MAX_PATH_BYTES, Slot, check_name

Action = Literal["read", "write", "admin"]

_ACTIONS: tuple[str, ...] = get_args(Action)
_ROOTS = ("runs", "sessions", "streams", "subscriptions", "metrics")
_FORMS = (
    "scopes look like read:runs/<id>, write:sessions/<id>/in, read:streams/<path>, read:runs/* "
    "or admin:*"
)
#: Segments a stream's path can have, and two for what stands before it.
_MOST_SEGMENTS = MAX_PATH_BYTES // 2 + 2
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: Besides letters and digits (RFC 3986, pchar) what a scope shows as it is.
_PLAIN = "-._~:@!$&'()+,;="


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope, taken apart. ``open_ended``: it ends with ``*``."""

    action: Action
    segments: tuple[str, ...]
    open_ended: bool = False

    @classmethod
    def parse(cls, text: object) -> Scope:
        """Read a scope.

        Raises:
            ConfigurationError: it is none; the message says why.
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"a scope is a string, not {type(text).__name__}; {_FORMS}")
        shown = ascii(text if len(text) <= 100 else text[:97] + "...")
        action, colon, resource = text.partition(":")
        if not colon or action not in _ACTIONS:
            raise ConfigurationError(
                f"the scope {shown} does not start with read:, write: or admin:; {_FORMS}"
            )
        raw = resource.split("/")
        open_ended = raw[-1] == "*"
        if open_ended:
            raw.pop()
        try:
            segments = tuple(_decoded(segment) for segment in raw)
            _check_shape(segments, open_ended)
        except InvalidName as error:
            raise ConfigurationError(f"the scope {shown}: {error}; {_FORMS}") from None
        return cls(action, segments, open_ended)  # type: ignore[arg-type]

    def covers(self, action: Action, segments: tuple[str, ...]) -> bool:
        """Whether it allows ``action`` on the resource with these segments."""
        if self.action not in (action, "admin"):
            return False
        own = len(self.segments)
        if segments[:own] != self.segments:
            return False
        if self.open_ended:
            return len(segments) > own
        # A run and a session have streams; a stream has none, only neighbours with longer names.
        return len(segments) == own or self.segments[0] != "streams"

    def __str__(self) -> str:
        parts = [quote(segment, safe=_PLAIN) for segment in self.segments]
        return f"{self.action}:{'/'.join([*parts, '*'] if self.open_ended else parts)}"


@dataclass(frozen=True, slots=True)
class Access:
    """What the bearer of a verified token may do, until ``expires_at`` (Unix seconds).

    ``token_id`` is the token's ``jti``, or stands for it; ``""`` if there is no token.
    """

    scopes: tuple[Scope, ...]
    subject: str | None = None
    token_id: str = ""
    expires_at: float = math.inf

    def allows(self, action: Action, resource: str) -> bool:
        """Whether ``action`` is allowed on ``resource``, for example ``runs/<id>/<key>``.

        ``resource`` is not percent-encoded (see :func:`resource_of`). One that could mean
        several things (an empty or relative segment) is allowed to nobody.
        """
        segments = tuple(resource.split("/"))
        if not {"", ".", ".."}.isdisjoint(segments):
            return False
        return any(each.covers(action, segments) for each in self.scopes)


#: Everything is allowed: a gateway that was told not to ask for tokens.
UNRESTRICTED = Access((Scope("admin", (), open_ended=True),))


def scope(action: Action, *segments: str) -> str:
    """The scope for names that come from elsewhere: ``scope("read", "runs", run_id)``.

    None of them can end up as a wildcard or as more than one segment.

    Raises:
        ConfigurationError: the result would be no scope.
    """
    return str(Scope.parse(f"{action}:{'/'.join(quote(part, safe='') for part in segments)}"))


def resource_of(slot: Slot) -> str:
    """What :meth:`Access.allows` calls a stream."""
    return f"streams/{slot}" if slot.scope == "path" else str(slot)


def granted(claim: object) -> tuple[Scope, ...]:
    """The scopes in a token's ``scope`` claim: a string with blanks between them, or a list.

    Other issuers put scopes for other servers beside ours; what is none of ours grants nothing.
    """
    texts: Iterable[object] = claim.split(" ") if isinstance(claim, str) else ()
    if isinstance(claim, list):
        texts = claim
    scopes = []
    for text in texts:
        try:
            scopes.append(Scope.parse(text))
        except ConfigurationError:
            continue
    return tuple(scopes)


def _decoded(segment: str) -> str:
    if _BAD_ESCAPE.search(segment):
        raise InvalidName("'%' is not followed by two hexadecimal digits (write %25)")
    if "*" in segment:
        raise InvalidName("'*' stands for all segments from there on, as the last one (or is %2A)")
    if any(character.isspace() for character in segment):
        raise InvalidName("a blank separates scopes; write %20")
    try:
        return check_name(unquote(segment, errors="strict"), "the segment")
    except UnicodeDecodeError:
        raise InvalidName("a percent-encoded segment is not UTF-8") from None


def _check_shape(segments: tuple[str, ...], open_ended: bool) -> None:
    if not segments:
        return  # only "*" has none
    root, length = segments[0], len(segments) + open_ended
    if root not in _ROOTS:
        raise InvalidName(f"{root!a} is none of {', '.join(_ROOTS)}")
    if root == "metrics" and length == 1:
        return
    if length < 2:
        raise InvalidName(f"which of the {root}? '{root}/*' is all of them")
    most = {"streams": _MOST_SEGMENTS, "subscriptions": 2, "metrics": 1}.get(root, 3)
    if length > most:
        raise InvalidName(f"there is nothing so far below {root}")
    if root == "sessions" and len(segments) == 3 and segments[2] not in ("in", "out"):
        raise InvalidName("a session has the channels 'in' and 'out'")
