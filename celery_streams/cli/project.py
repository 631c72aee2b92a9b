"""Which Celery app, and which streams, a command is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from celery import Celery

from celery_streams.app import Streams
from celery_streams.errors import ConfigurationError, StreamError


def app_of(ctx: click.Context) -> Celery:
    """The app that ``celery -A`` names."""
    app: Celery = ctx.obj.app
    return app


def streams_of(ctx: click.Context) -> Streams:
    """Its streams.

    Raises:
        ConfigurationError: it has none, or its modules cannot be imported.
    """
    app = app_of(ctx)
    if not isinstance(getattr(app, "streams", None), Streams):
        with app_errors():
            app.loader.import_default_modules()
    found = getattr(app, "streams", None)
    if isinstance(found, Streams):
        return found
    raise ConfigurationError(
        f"the Celery app {app.main!r} has no streams: name the right app "
        "(celery -A proj streams ...), and give it streams = Streams(app)"
    )


@contextmanager
def app_errors() -> Iterator[None]:
    """An app that cannot be imported or asked is a problem to tell, not a traceback."""
    try:
        yield
    except (StreamError, click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        raise ConfigurationError(f"{type(error).__name__}: {error}") from error
