"""``streams serve``: the gateway under uvicorn, in this process or in several."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import logging.config
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from celery_streams.gateway.application import Gateway
from celery_streams.gateway.connections import (
    HEAD_SLACK,
    KEEP_ALIVE,
    BoundedProtocol,
    Bounds,
    bounded,
)
from celery_streams.settings import StreamsSettings

logger = logging.getLogger("celery_streams.gateway")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Files that are no connections of clients.
_OTHER_FILES = 128
#: How many containers more than before there must be for Python's collector to look at the new
#: ones; every how many times at older ones, too; and every how many times that at all.
_COLLECTOR = (5_000, 10, 5)
#: Seconds after the shutdown's own bound in which uvicorn would cancel what is left.
_AFTERWARDS = 5.0


def serve(
    gateway: Gateway,
    settings: StreamsSettings,
    listener: socket.socket,
    *,
    access_log: bool = True,
    lifeline: int | None = None,
) -> None:
    """Serve on ``listener`` until SIGTERM or SIGINT, then let requests end.

    ``lifeline`` is a file descriptor whose end is as good as SIGTERM: of a pipe that only the
    supervisor can write to, so that no process outlives it.
    """
    bounds = Bounds(
        gateway.refusal,
        head_bytes=settings.gateway_max_header_bytes + settings.gateway_max_url_bytes + HEAD_SLACK,
        url_bytes=settings.gateway_max_url_bytes + HEAD_SLACK,
        connections=_most_connections(settings.gateway_max_connections),
    )
    config = uvicorn.Config(
        gateway,
        http=bounded(bounds),
        ws="none",
        lifespan="on",
        log_config=logging_config(),
        access_log=access_log,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.gateway_shutdown_timeout + _AFTERWARDS),
    )
    _calm_collector()
    Server(config, gateway, settings.gateway_shutdown_timeout, lifeline).run([listener])


class Server(uvicorn.Server):
    """uvicorn's server, which ends live reads before it waits for connections to end.

    Args:
        config: uvicorn's.
        gateway: what to drain.
        patience: seconds that requests have to end; then their connections are cut off.
        lifeline: see :func:`serve`.
    """

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, patience: float, lifeline: int | None
    ) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._patience = patience
        self._lifeline = lifeline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._orphaned, self._lifeline)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and let those there are end."""
        self._gateway.drain()
        late = asyncio.get_running_loop().call_later(self._patience, self._cut_off_rest)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal. Unlike uvicorn's, does not die of it after that."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at the second Ctrl+C without waiting for anybody."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    def _orphaned(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        self.should_exit = True

    def _cut_off_rest(self) -> None:
        left = list(self.server_state.connections)
        if left:
            logger.warning("cutting off connections that have not ended by now: %d", len(left))
        for connection in left:
            if isinstance(connection, BoundedProtocol):
                connection.cut_off()


def logging_config() -> dict[str, Any]:
    """uvicorn's logging, with ours beside it and without anybody's tokens."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"tokens": {"()": "celery_streams.gateway.auth.RedactTokens"}}
    for handler in config["handlers"].values():
        handler["filters"] = ["tokens"]
    config["loggers"]["celery_streams"] = {"handlers": ["default"], "level": "INFO"}
    return config


def configure_logging() -> None:
    """Log like a serving process, for one that only supervises."""
    logging.config.dictConfig(logging_config())


def _calm_collector() -> None:
    """Have Python's collector stop this process seldom and briefly.

    It stops everything while it looks for garbage that goes round in circles: 0.1 s with a
    thousand subscribers, by its own defaults after every few seconds of appends. Requests leave
    no such garbage behind, so it may look less often; what is loaded by now stays anyway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)


def _most_connections(wanted: int) -> int:
    """As many as the system allows files for, which is asked for as many as it may give."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        more = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, soft - _OTHER_FILES)
    logger.warning(
        "process %d serves at most %d connections: its limit of open files is %d",
        os.getpid(),
        most,
        soft,
    )
    return most
