"""Lua scripts as package data: loaded once, called by digest.

By digest (``EVALSHA``) rather than as a server-side function library, so that two versions of
this package can run beside each other during a rolling deployment: each has its own digests.
A server that does not know a digest answers ``NOSCRIPT``; the source is then sent once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

_INCLUDE = "--#include "


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script: its source and the digest the server knows it by."""

    name: str
    source: str = field(repr=False)
    digest: str


@cache
def load_script(package: str, name: str) -> Script:
    """The script ``lua/<name>.lua`` of ``package``, with its ``--#include`` lines resolved.

    What is included is shared Lua of :mod:`celery_streams.redis`, or of ``package`` itself
    (``--#include ./name``).
    """
    source = _source(package, name)
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _source(package: str, name: str) -> str:
    text = files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if line.startswith(_INCLUDE):
            included = line.removeprefix(_INCLUDE).strip()
            own = included.startswith("./")
            line = _source(package if own else "celery_streams.redis", included.removeprefix("./"))
        lines.append(line)
    return "\n".join(lines)
