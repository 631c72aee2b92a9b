"""``/healthz`` and ``/readyz``: whether this process lives, and whether to send it clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from celery_streams.errors import StoreUnavailable
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import FULL, Replies, Scope, Send
from celery_streams.protocol import ProtocolStore
from celery_streams.slots import Slot

#: Seconds in which the store must answer: less than the usual patience of whoever asks.
READY_TIMEOUT = 2.0
#: Seconds after which to ask again.
_RETRY_AFTER = "2"
#: A stream that is never there, to ask the store for.
_NOWHERE = Slot.path("__ready")
_HEADERS = {"content-type": "application/json", "cache-control": "no-store"}


class Health:
    """Answers without a token: it says nothing that connecting would not say.

    Args:
        replies: how answers are sent.
        draining: whether this process is about to stop.
    """

    def __init__(self, replies: Replies, draining: Callable[[], bool]) -> None:
        self._replies = replies
        self._draining = draining
        self._checking: asyncio.Task[None] | None = None

    async def alive(self, scope: Scope, send: Send) -> None:
        """This process answers. It asks nobody else: restarting it would not heal a store."""
        await self._replies.reply(scope, send, 200, _HEADERS, b'{"status":"alive"}')

    async def ready(self, scope: Scope, send: Send, store: ProtocolStore) -> None:
        """The store answers, and this process is going to stay and has room.

        Raises:
            Problem: 503.
        """
        if self._draining():
            raise Problem(503, "draining", "this gateway is shutting down; use another")
        if FULL in scope:
            raise full()
        checking = self._checking
        if checking is None or checking.done() or checking.get_loop() is not _loop():
            # However many ask at once, the store is asked once.
            checking = self._checking = asyncio.create_task(_check(store))
        await asyncio.shield(checking)
        await self._replies.reply(scope, send, 200, _HEADERS, b'{"status":"ready"}')


def full() -> Problem:
    """The problem of a client for whom there is no connection left."""
    return Problem(
        503,
        "full",
        "this gateway has all the connections it takes; use another, or try again soon",
        headers={"retry-after": _RETRY_AFTER},
    )


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def _check(store: ProtocolStore) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            head = (await store.heads([_NOWHERE]))[0]
    except TimeoutError:
        raise Problem(
            503,
            "store-unavailable",
            f"the store has not answered within {READY_TIMEOUT:g} s",
            headers={"retry-after": _RETRY_AFTER},
        ) from None
    except StoreUnavailable:
        head = StoreUnavailable()
    if isinstance(head, StoreUnavailable):
        raise Problem(
            503,
            "store-unavailable",
            "the store cannot be reached",
            headers={"retry-after": _RETRY_AFTER},
        )
