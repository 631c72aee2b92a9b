"""``celery -A proj streams token``: an access token for the gateway."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from celery_streams.cli.project import streams_of

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not like 90, 90s, 15m, 1h or 7d", ctx, param)
    return float(match[1]) * _SECONDS[match[2]]


@click.command()
@click.argument("scopes", metavar="SCOPE...", nargs=-1, required=True)
@click.option(
    "--ttl",
    callback=_duration,
    default="1h",
    metavar="DURATION",
    show_default=True,
    help="How long it is valid: 90s, 15m, 1h, 7d.",
)
@click.pass_context
def token(ctx: click.Context, scopes: Sequence[str], ttl: float) -> None:
    """Print an access token for the gateway.

    A SCOPE is an action and what it is allowed on: read:runs/ID, read:runs/ID/KEY,
    write:sessions/ID/in, read:streams/PATH, read:runs/*, admin:*.
    """
    click.echo(streams_of(ctx).token(scopes, ttl))
