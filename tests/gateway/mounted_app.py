"""The gateway inside of other people's ASGI applications: ``python -m tests.gateway.mounted_app``.

Serves one of them with plain uvicorn, and prints its address. None of the parents runs the
gateway's lifespan: Starlette and FastAPI do not for what is mounted, Django has none.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from celery_streams.gateway import create_app
from tests.apps.gateway_app import streams

PREFIX = "/api/live"


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def own(_: Any) -> Any:
        return PlainTextResponse("starlette")

    gateway = create_app(streams, insecure=True)

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        yield
        await gateway.aclose()

    routes = [Mount(PREFIX, app=gateway), Route("/own", own)]
    return Starlette(routes=routes, lifespan=lifespan)


def fastapi() -> Any:
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    parent = FastAPI()

    @parent.get("/own", response_class=PlainTextResponse)
    async def own() -> str:
        return "fastapi"

    parent.mount(PREFIX, create_app(streams, insecure=True))
    return parent


def django() -> Any:
    """A project's ``asgi.py``: Django has no mounting, so it goes by the path."""
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import path

    settings.configure(
        SECRET_KEY="test", ROOT_URLCONF="django_urls", ALLOWED_HOSTS=["127.0.0.1"], USE_TZ=True
    )
    urls: Any = type(sys)("django_urls")
    urls.urlpatterns = [path("own", lambda request: HttpResponse("django"))]
    sys.modules["django_urls"] = urls
    site = get_asgi_application()
    gateway = create_app(streams, insecure=True)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX + "/"):
            await gateway({**scope, "root_path": PREFIX}, receive, send)
        else:
            await site(scope, receive, send)

    return application


class _Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}", flush=True)


def main() -> None:
    parent = {"starlette": starlette, "fastapi": fastapi, "django": django}[sys.argv[1]]()
    # Django says that it supports no lifespan; "auto" takes no for an answer.
    config = uvicorn.Config(parent, port=0, timeout_graceful_shutdown=3, lifespan="auto")
    _Server(config).run()


if __name__ == "__main__":
    main()
