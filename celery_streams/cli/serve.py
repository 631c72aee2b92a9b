"""``celery -A proj streams serve``: the HTTP gateway."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click

from celery_streams.cli.project import app_errors, streams_of
from celery_streams.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_streams.app import Streams

_WORKER = "--worker"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that serve.",
)
@click.option("--insecure", is_flag=True, help="Serve everybody who can connect, without tokens.")
@click.option("--ui", is_flag=True, help="Serve a page to look at runs and sessions, too.")
@click.option("--access-log/--no-access-log", default=True, help="Log a line for each request.")
@click.option(_WORKER, "files", type=int, nargs=2, hidden=True)
@click.pass_context
def serve(
    ctx: click.Context,
    host: str,
    port: int,
    workers: int,
    insecure: bool,
    ui: bool,
    access_log: bool,
    files: tuple[int, int] | None,
) -> None:
    """Serve streams over HTTP: the Durable Streams protocol, health and metrics.

    Clients need an access token (celery -A proj streams token SCOPE), unless it is --insecure.
    SIGTERM lets requests end, and has live readers connect elsewhere.
    """
    try:
        from celery_streams.gateway import connections, create_app, serving, supervising
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the gateway needs {error.name}, which is not installed: "
            "pip install 'celery-streams[gateway]'"
        ) from error
    serving.configure_logging()
    with app_errors():
        streams = streams_of(ctx)
        gateway = create_app(streams, insecure=insecure, ui=ui)
    settings = streams.settings
    if files is not None:
        listener = socket.socket(fileno=files[0])
        serving.serve(gateway, settings, listener, access_log=access_log, lifeline=files[1])
        return
    store = _store(streams)
    try:
        listener = connections.listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from None
    click.echo(_welcome(listener, store, workers, insecure=insecure, ui=ui))
    if workers == 1:
        serving.serve(gateway, settings, listener, access_log=access_log)
        return
    command = supervising.own_command(_WORKER)
    patience = settings.gateway_shutdown_timeout
    supervising.Supervisor(command, listener, workers, patience).run()


def _store(streams: Streams) -> str:
    """The store's address, without its password. Raises what a wrong one raises."""
    with app_errors():
        return streams.runtime.where


def _welcome(listener: socket.socket, store: str, workers: int, *, insecure: bool, ui: bool) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    facts = [
        f"store {store}",
        "INSECURE: no tokens are asked for" if insecure else "tokens required",
        f"{workers} processes" if workers > 1 else "1 process",
        *(["with the page at /"] if ui else []),
    ]
    return f"celery-streams gateway: http://{shown}:{port} ({', '.join(facts)})"
