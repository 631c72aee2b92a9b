"""The ASGI application: routes, and what becomes of an error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from celery_streams.app import Streams
from celery_streams.chat.turns import TurnCommands
from celery_streams.errors import ConfigurationError, StoreUnavailable, StreamError
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.chat import CHAT_ROOT, ChatEndpoint, Parts, SessionFeed, agents_by_name
from celery_streams.gateway.endpoint import StreamEndpoint
from celery_streams.gateway.health import Health, full
from celery_streams.gateway.hub import Hub
from celery_streams.gateway.limits import BodyTooLarge, ClientGone, check_request
from celery_streams.gateway.metrics import RESOURCE, MeteredStore, Metrics, Sources, StoreCounts
from celery_streams.gateway.minting import Minting
from celery_streams.gateway.openapi import openapi
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import FULL, STARTED, Receive, Replies, Scope, Send
from celery_streams.gateway.runs import RunsEndpoint
from celery_streams.gateway.subscriptions import SubscriptionEndpoint, Subscriptions
from celery_streams.gateway.targets import RESERVED, STREAM_ROOT
from celery_streams.gateway.viewer import Viewer
from celery_streams.protocol import ProtocolStore

logger = logging.getLogger("celery_streams.gateway")

#: Paths of whoever operates the gateway: answered also when it has no place for a client.
_OPERATIONS = ("/healthz", "/readyz", "/metrics", "/openapi.json")

#: Where the protocol's own paths begin (PROTOCOL 6).
_CONTROL = f"{STREAM_ROOT}{RESERVED}/"
#: Seconds after which a client may come back when the store cannot be reached.
_RETRY_AFTER = "2"


@dataclass(slots=True)
class _Running:
    """What belongs to one event loop."""

    store: MeteredStore
    hub: Hub
    streams: StreamEndpoint
    runs: RunsEndpoint
    subscriptions: Subscriptions | None
    control: SubscriptionEndpoint | None
    chat: ChatEndpoint | None


class Gateway:
    """See :func:`create_app`. One event loop at a time; nothing is opened before it is needed."""

    def __init__(
        self,
        streams: Streams,
        *,
        insecure: bool = False,
        ui: bool = False,
        agents: Mapping[str, str] | None = None,
    ) -> None:
        self._streams = streams
        self._settings = streams.settings
        self._agents = agents_by_name(self._settings.chat_agents, agents)
        self._gate = Gate(self._settings, insecure=insecure)
        self._replies = Replies(self._settings.gateway_cors_origins)
        self._viewer = Viewer() if ui else None
        self._running: dict[asyncio.AbstractEventLoop, _Running] = {}
        self._draining = False
        self._counts = StoreCounts()
        self._health = Health(self._replies, lambda: self._draining)
        self._metrics = Metrics(
            Sources(
                self._replies,
                self._counts,
                lambda: [running.hub for running in self._running.values()],
                lambda: self._draining,
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("the gateway speaks HTTP only")
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return
        except Problem as problem:
            # A client that asks first hears no before it sends anything.
            asked = any(name == b"expect" for name, _ in scope["headers"])
            if isinstance(problem, BodyTooLarge) and problem.unread and not asked:
                await self._swallow(receive)
            await self._replies.refuse(scope, send, problem)
        except StoreUnavailable as error:
            if STARTED in scope:
                return
            logger.warning("%s %s: %s", scope["method"], scope["path"], error)
            unavailable = Problem(
                503,
                "store-unavailable",
                "the store cannot be reached; try again soon",
                headers={"retry-after": _RETRY_AFTER},
            )
            await self._replies.refuse(scope, send, unavailable)
        except StreamError as error:
            if STARTED in scope:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            failed = Problem(500, "internal-error", type(error).__name__)
            await self._replies.refuse(scope, send, failed)

    def refusal(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> bytes:
        """A whole answer, for a server whose client has sent what is no request."""
        return self._replies.last_words(problem, headers)

    def drain(self) -> None:
        """End every live read, so that clients reconnect elsewhere: before a shutdown.

        From then on a new one ends as soon as it has caught up, and ``/readyz`` says no.
        """
        self._draining = True
        for running in self._running.values():
            running.hub.drain()
            if running.chat is not None:
                running.chat.drain()

    async def aclose(self) -> None:
        """End what runs on this event loop."""
        running = self._running.pop(asyncio.get_running_loop(), None)
        if running is not None:
            if running.subscriptions is not None:
                await running.subscriptions.aclose()
            if running.chat is not None:
                await running.chat.aclose()
            await running.hub.aclose()
            await running.store.aclose()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_request(scope, self._settings)
        if scope["method"] == "OPTIONS":
            await self._replies.preflight(scope, send)
            return
        path = _route(scope)
        if scope.get(FULL) and path not in _OPERATIONS:
            raise full()
        if path.startswith(_CONTROL):
            control = self._on_this_loop().control
            if control is None:
                raise Problem(404, "not-found", "the configured store has no subscriptions")
            await control(scope, receive, send, path.removeprefix(_CONTROL))
            return
        if path.startswith(STREAM_ROOT):
            running = self._on_this_loop()
            await running.streams(scope, receive, send, path.removeprefix(STREAM_ROOT))
            return
        if path.startswith(CHAT_ROOT) and (chat := self._on_this_loop().chat) is not None:
            await chat(scope, receive, send, path.removeprefix(CHAT_ROOT))
            return
        if RunsEndpoint.serves(path):
            await self._on_this_loop().runs(scope, send, path)
            return
        if path in _OPERATIONS:
            await self._operate(scope, send, path)
            return
        if self._viewer is not None and self._viewer.serves(path):
            await self._viewer(scope, send, path)
            return
        raise Problem(404, "not-found", "there is nothing at this path")

    async def _operate(self, scope: Scope, send: Send, path: str) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(
                405, "method-not-allowed", "this can be read only", headers={"allow": "GET, HEAD"}
            )
        match path:
            case "/healthz":
                await self._health.alive(scope, send)
            case "/readyz":
                await self._health.ready(scope, send, self._on_this_loop().hub.store)
            case "/openapi.json":
                body = json.dumps(openapi(scope.get("root_path", ""))).encode()
                headers = {"content-type": "application/json", "cache-control": "no-cache"}
                await self._replies.reply(scope, send, 200, headers, body)
            case _:
                if not self._settings.gateway_metrics_public:
                    self._gate.require(self._gate.access(scope), "read", RESOURCE)
                await self._metrics(scope, send)

    async def _swallow(self, receive: Receive) -> None:
        """Read some more of a body that is refused: a client that still sends hears nothing."""
        left = 4 * self._settings.gateway_max_body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.gateway_body_timeout):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    def _on_this_loop(self) -> _Running:
        loop = asyncio.get_running_loop()
        running = self._running.get(loop)
        if running is None:
            metered = MeteredStore(self._streams.runtime.protocol_store(), self._counts)
            store = cast("ProtocolStore", metered)  # what it does not define is the store's own

            async def inquire(run_id: str) -> str | None:
                return await asyncio.to_thread(self._streams.end_if_over, run_id)

            hub = Hub(store, self._settings, inquire)
            subscriptions = Subscriptions.of(self._streams, store)
            control = appended = None
            if subscriptions is not None:
                appended = subscriptions.waker.appended
                control = SubscriptionEndpoint(
                    subscriptions, self._gate, self._replies, self._settings
                )
                subscriptions.start()
            minting = Minting(self._streams, self._gate, self._replies)
            endpoint = StreamEndpoint(
                store, hub, self._gate, self._replies, self._settings, appended, minting
            )
            runs = RunsEndpoint(store, inquire, self._gate, self._replies)
            running = self._running[loop] = _Running(
                metered, hub, endpoint, runs, subscriptions, control, self._chat(store)
            )
            if self._draining:
                self.drain()
        return running

    def _chat(self, store: ProtocolStore) -> ChatEndpoint | None:
        runtime = self._streams.runtime
        if not self._agents or not runtime.records_runs:
            return None
        parts = Parts(
            self._agents,
            self._streams.app,
            runtime.async_link(),
            TurnCommands(runtime.layout, self._settings),
            SessionFeed(store, self._settings),
        )
        return ChatEndpoint(parts, self._gate, self._replies, self._settings)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                with suppress(ConfigurationError):  # whoever asks for a stream is told
                    self._on_this_loop()  # wakes are due whether or not anybody does
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(
    streams: Streams,
    *,
    insecure: bool = False,
    ui: bool = False,
    agents: Mapping[str, str] | None = None,
) -> Gateway:
    """The gateway as an ASGI application, alone or mounted under any prefix.

    ::

        app = create_app(streams)                         # uvicorn proj.gateway:app
        Starlette(routes=[Mount("/streams", app=create_app(streams))])

    Args:
        streams: whose store it serves.
        insecure: serve everybody who can connect, without tokens.
        ui: serve a page to look at runs and sessions, at ``/``.
        agents: chat-agent tasks to serve below ``/chat/``, by the names that URLs use; besides
            those of the setting ``chat_agents``.

    Raises:
        ConfigurationError: there is no secret to check tokens with, and ``insecure`` is not set.
    """
    return Gateway(streams, insecure=insecure, ui=ui, agents=agents)


def _route(scope: Scope) -> str:
    """The path below the prefix the gateway is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path
