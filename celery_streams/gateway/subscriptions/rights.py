"""Which patterns a token's bearer may follow."""

from __future__ import annotations

from celery_streams.stores.patterns import Pattern
from celery_streams.tokens import Access, Scope

_ROOTS = {"run": "runs", "session": "sessions", "path": "streams"}


def may_follow(access: Access, pattern: Pattern) -> bool:
    """Whether ``access`` allows to read every stream that ``pattern`` can ever match."""
    for where in pattern.scopes:
        root = _ROOTS[where]
        literal, shortest = pattern.literal, pattern.shortest
        if where == "path":
            literal, shortest = (root, *literal), max(shortest + 1, 2)
        else:  # runs/<id>/<key>, and nothing shorter
            literal, shortest = literal or (root,), max(shortest, 3)
        if not any(_covers(scope, literal, shortest) for scope in access.scopes):
            return False
    return True


def _covers(scope: Scope, literal: tuple[str, ...], shortest: int) -> bool:
    """Whether a scope covers all that begins with ``literal`` and is at least ``shortest`` long."""
    if scope.action not in ("read", "admin"):
        return False
    own = scope.segments
    if literal[: len(own)] != own:
        return False
    if scope.open_ended:
        return shortest > len(own)
    # A run and a session stand for their streams; a stream only for itself, without wildcards.
    return own[0] != "streams" or len(own) == len(literal) == shortest
