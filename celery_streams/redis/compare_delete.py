"""Delete a value only if it is still the one the caller saw."""

from __future__ import annotations

import redis.exceptions as rx

from celery_streams.errors import StreamError
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.scripts import load_script

#: What servers, and redis-py for a cluster, say of a command they do not know.
_UNKNOWN = ("unknown command", "command doesn't exist")


class CompareAndDelete:
    """One round trip, in the best form the server has.

    ``DELIFEQ`` on Valkey 9 and newer, ``DELEX ... IFEQ`` on Redis 8.4 and newer, a script
    otherwise. The first call finds out by trying; what works is remembered, and looked for
    again when it stops working (a failover to an older server).
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._form = 0

    def __call__(self, key: str, value: bytes) -> bool:
        """Delete ``key`` if it holds exactly ``value``; ``True`` if it was deleted."""
        forms = self._forms(key, value)
        for form in range(self._form, len(forms)):
            try:
                deleted = self._link.call(forms[form])
            except StreamError as error:
                if form < len(forms) - 1 and _is_missing_command(error.__cause__):
                    continue
                raise
            self._form = form
            return deleted
        raise AssertionError("the script form either answers or raises")  # pragma: no cover

    @staticmethod
    def _forms(key: str, value: bytes) -> tuple[Call[bool], ...]:
        script = load_script("celery_streams.redis", "compare_and_delete")
        return (
            Call("DELIFEQ", (key,), (value,), bool),
            Call("DELEX", (key,), ("IFEQ", value), bool),
            Call(script, (key,), (value,), bool),
        )


def _is_missing_command(error: BaseException | None) -> bool:
    # A user may be allowed scripts and not a command its ACL's author had never heard of.
    if isinstance(error, rx.NoPermissionError):
        return True
    text = str(error).lower()
    return any(fragment in text for fragment in _UNKNOWN)
