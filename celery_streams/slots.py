"""What a stream is called: :class:`Slot`, and the check that a name cannot escape its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import quote, unquote

from celery_streams.errors import InvalidName

Scope = Literal["run", "session", "path"]
Channel = Literal["out", "in"]

#: Longest run id, session id or key, in UTF-8 bytes.
MAX_NAME_BYTES = 255
#: Longest path of a stream that clients create, in UTF-8 bytes.
MAX_PATH_BYTES = 1024

#: Characters with a meaning in a Redis key, a hash tag or a URL path.
_RESERVED = frozenset("{}/\\")


def check_name(value: object, what: str) -> str:
    """Return ``value`` if it can be (part of) a stream's name.

    A name is 1 to 255 UTF-8 bytes of printable characters other than ``{ } / \\``, has no
    blank at either end, and is neither ``.`` nor ``..``: so it is one segment of a URL path
    and one segment of a Redis key, whatever a client sends.

    Raises:
        InvalidName: ``value`` is not such a string; the message says what is wrong with it.
    """
    if not isinstance(value, str):
        raise InvalidName(f"{what} must be a string, not {type(value).__name__}")
    if value.isascii() and value.isalnum() and len(value) <= MAX_NAME_BYTES:
        return value
    if problem := _problem(value):
        raise InvalidName(f"{what} {_shown(value)} {problem}")
    return value


def _problem(value: str) -> str | None:
    if not value:
        return "is empty; give a name of 1 to 255 bytes"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "contains a lone surrogate, which UTF-8 cannot encode"
    if size > MAX_NAME_BYTES:
        return f"has {size} bytes; the limit is {MAX_NAME_BYTES}"
    if value in (".", ".."):
        return "is a relative path segment; choose another name"
    if bad := sorted(_RESERVED.intersection(value)):
        return f"contains {' '.join(bad)}, reserved for keys and URL paths"
    if not value.isprintable():
        return "contains a control or other unprintable character"
    if value != value.strip():
        return "starts or ends with a blank"
    return None


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else value[:57] + "...")


@dataclass(frozen=True, slots=True)
class Slot:
    """The identity of one stream, and the key under which its credentials are cached.

    Build one with :meth:`run`, :meth:`session`, :meth:`path` or :meth:`at`, which validate; the
    constructor trusts.
    """

    scope: Scope
    owner: str
    key: str

    @classmethod
    def run(cls, run_id: str, key: str = "default") -> Slot:
        """The stream ``key`` of the run (Celery task id) ``run_id``."""
        return cls("run", check_name(run_id, "run id"), check_name(key, "stream key"))

    @classmethod
    def session(cls, session_id: str, channel: Channel = "out") -> Slot:
        """The ``out`` or ``in`` channel of the session ``session_id``."""
        if channel not in ("out", "in"):
            raise InvalidName(f"a session has the channels 'out' and 'in', not {channel!r}")
        return cls("session", check_name(session_id, "session id"), channel)

    @classmethod
    def path(cls, path: str) -> Slot:
        """The stream that clients of the gateway create at ``path`` (segments between ``/``)."""
        for segment in path.split("/"):
            check_name(segment, "path segment")
        if len(path.encode()) > MAX_PATH_BYTES:
            raise InvalidName(f"the path has more than {MAX_PATH_BYTES} bytes")
        # One segment of a Redis key, like every owner.
        return cls("path", quote(path, safe=""), "default")

    @classmethod
    def at(cls, path: str) -> Slot:
        """The stream that ``path`` names in URLs, ``runs/<id>/<key>`` or any other.

        A run's key and a session's channel may be left out.
        """
        first, _, rest = path.partition("/")
        owner, _, key = rest.partition("/")
        if first == "runs":
            return cls.run(owner, key or "default")
        if first == "sessions":
            return cls.session(owner, cast("Channel", key or "out"))
        return cls.path(path)

    def __str__(self) -> str:
        if self.scope == "path":
            return unquote(self.owner)
        return f"{self.scope}s/{self.owner}/{self.key}"
