"""Messages on plain channels, over one connection a process: :class:`ChannelListener`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from celery_streams.errors import StreamError
from celery_streams.redis.client import RedisLink
from celery_streams.redis.connect import SyncConnection, receive
from celery_streams.redis.failures import REDIS_ERRORS

logger = logging.getLogger("celery_streams.redis")

#: Seconds between attempts to connect again.
_PAUSE = 0.5
#: Seconds after which a silent connection is looked after.
_SILENCE = 5.0


@dataclass(frozen=True, slots=True)
class _Watch:
    heard: Callable[[bytes], None]
    #: The channel is subscribed (again): what was said before was not heard.
    ready: Callable[[], None]


class ChannelListener:
    """Calls back for what is published on channels, from one thread of its own.

    Plain channels, not sharded ones: a cluster passes them on to every node, so one
    connection to any node hears them all. For rare messages only.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._watches: dict[str, _Watch] = {}
        self._connection: SyncConnection | None = None
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(
        self, channel: str, heard: Callable[[bytes], None], ready: Callable[[], None]
    ) -> None:
        """Call ``heard`` with each message, and ``ready`` once nothing more is missed."""
        with self._lock:
            self._watches[channel] = _Watch(heard, ready)
            self._closed = False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="celery-streams-listener", daemon=True
                )
                self._thread.start()
            self._say("SUBSCRIBE", channel)
            self._wanted.set()

    def ignore(self, channel: str) -> None:
        """Call nobody any more."""
        with self._lock:
            if self._watches.pop(channel, None) is not None:
                self._say("UNSUBSCRIBE", channel)
            if not self._watches:
                self._wanted.clear()

    def close(self) -> None:
        """Close the connection and end the thread; what is watched next starts another."""
        with self._lock:
            self._watches.clear()
            self._closed = True
            self._wanted.set()
            if self._connection is not None:
                self._connection.disconnect()

    def _is_over(self) -> bool:
        with self._lock:
            if not self._closed:
                return False
            self._wanted.clear()
            self._thread = None
            return True

    def _say(self, *words: str) -> None:
        """Send on the connection, if there is one: its thread subscribes to all at its start."""
        if self._connection is not None:
            with suppress(*REDIS_ERRORS, OSError):
                self._connection.send_command(*words)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._is_over():
                return
            try:
                self._listen()
            except (StreamError, *REDIS_ERRORS, OSError) as error:
                if self._closed:
                    continue
                logger.info("lost the connection for messages to running turns: %s", error)
                time.sleep(_PAUSE)
            except Exception:
                if self._closed:
                    continue  # under its hands, which redis-py does not expect
                logger.exception("listening for messages to running turns failed")
                time.sleep(_PAUSE)

    def _listen(self) -> None:
        with self._lock:
            channels = list(self._watches)
            if not channels:
                return
        connection = self._link.connection(channels[0])
        try:
            connection.connect()
            with self._lock:
                self._connection = connection
                for channel in self._watches:
                    connection.send_command("SUBSCRIBE", channel)
            asked = False
            while self._wanted.is_set() and not self._closed:
                push = receive(connection, _SILENCE)
                if push is not None:
                    asked = False
                    self._received(push)
                elif asked:
                    raise ConnectionError("the server does not answer")
                else:
                    asked = True
                    with self._lock:
                        connection.send_command("PING")
        finally:
            with self._lock:
                self._connection = None
            connection.disconnect()

    def _received(self, reply: object) -> None:
        match reply:
            case [b"message", bytes(channel), bytes(data)]:
                if watch := self._watches.get(channel.decode()):
                    watch.heard(data)
            case [b"subscribe", bytes(channel), _]:
                if watch := self._watches.get(channel.decode()):
                    watch.ready()
