"""Which stream a command is about, said the same way to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import click

from celery_streams.slots import Channel, Slot

Command = Callable[..., Any]


def one_stream(*, paths: bool = True) -> Callable[[Command], Command]:
    """Let a command name one stream, which it gets as ``slot``.

    ``RUN_ID [KEY]``, ``--session ID [out|in]``, and with ``paths`` also ``--path PATH``: any
    stream as its URL and ``ls`` name it.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def named(
            *args: Any,
            names: Sequence[str],
            session: str | None,
            path: str | None = None,
            **rest: Any,
        ) -> Any:
            return command(*args, slot=_slot(names, session, path), **rest)

        result: Command = named
        if paths:
            text = "Any stream, by its path below /v1/stream/."
            result = click.option("--path", metavar="PATH", help=text)(result)
        result = session_option("A session's channel, [out|in], not a run's stream.")(result)
        return click.argument("names", metavar="[RUN_ID [KEY]]", nargs=-1)(result)

    return decorate


def session_option(text: str) -> Callable[[Command], Command]:
    """The option ``--session``."""
    return click.option("--session", metavar="ID", help=text)


def _slot(names: Sequence[str], session: str | None, path: str | None) -> Slot:
    if session is not None and path is not None:
        raise click.UsageError("--session and --path name two streams; give one of them")
    most = 2 if session is None and path is None else int(path is None)
    if len(names) > most:
        raise click.UsageError(f"too many arguments: {' '.join(names[most:])}")
    if path is not None:
        return Slot.at(path)
    if session is not None:
        channel = names[0] if names else "out"
        if channel not in ("out", "in"):
            raise click.UsageError(f"a session has the channels out and in, not {channel!r}")
        return Slot.session(session, cast("Channel", channel))
    if not names:
        raise click.UsageError("which stream? Give a run's id (the task id), or --session ID")
    return Slot.run(*names)
