"""``celery -A proj streams ...``: look at streams, and at what they run on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from celery_streams.app import Streams
from celery_streams.cli.doctor import Finding, examine
from celery_streams.cli.naming import one_stream, session_option
from celery_streams.cli.printer import Printer, say, shown
from celery_streams.cli.project import app_errors, app_of, streams_of
from celery_streams.cli.serve import serve
from celery_streams.cli.token import token
from celery_streams.contracts import Head, Offset
from celery_streams.errors import ReadTimeout, StreamError, StreamNotFound
from celery_streams.slots import Slot

_INTERRUPTED = 130
#: Streams that `ls` lists if it is not told of which run.
_LATEST = 50


class StreamsGroup(click.Group):
    """A group whose commands turn every :class:`StreamError` into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except StreamError as error:
            say(f"Error: {_one_line(error)}", err=True)
            ctx.exit(1)


def _offset(ctx: click.Context, param: click.Parameter, value: str) -> Offset:
    if value == "now":
        return "now"
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor 'now'", ctx, param) from None


@click.group(cls=StreamsGroup)
def streams() -> None:
    """Look at streams, and at what they run on."""


@streams.command()
@one_stream()
@click.option(
    "--offset",
    callback=_offset,
    default="0",
    metavar="N|now|-N",
    show_default=True,
    help="Where to start: a sequence number, -N for the last N chunks, or 'now'.",
)
@click.option("--json", "as_json", is_flag=True, help="One chunk a line, as JSON.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds without a chunk after which to give up.",
)
@click.pass_context
def tail(ctx: click.Context, slot: Slot, offset: Offset, as_json: bool, timeout: float) -> None:
    """Print a stream's chunks, live, until it ends.

    Text is printed as it comes, everything else as JSON; control characters are shown to a
    terminal, not sent. How the stream ended is said on standard error.
    """
    reader = streams_of(ctx).open_reader(slot, offset, timeout)
    printer = Printer(as_json=as_json)
    try:
        for chunk in reader:
            printer(chunk)
    except ReadTimeout as error:
        printer.end_line()
        _say(f"{slot}: no chunk for {timeout:g} s; go on with --offset {error.offset}")
        ctx.exit(1)
    except KeyboardInterrupt:
        printer.end_line()
        _say(f"{slot}: go on with --offset {reader.offset}")
        ctx.exit(_INTERRUPTED)
    printer.end_line()
    _say(f"{slot}: ended ({reader.closed or 'deleted'}) at offset {reader.offset}")


@streams.command("ls")
@click.argument("run_id", required=False)
@session_option("List a session's channels instead of a run's streams.")
@click.pass_context
def ls(ctx: click.Context, run_id: str | None, session: str | None) -> None:
    """List the streams of a run or a session: chunks, attempts, and whether they have ended.

    Without either: the streams of runs and sessions that were opened last.
    """
    owner = streams_of(ctx)
    if run_id is not None and session is not None:
        raise click.UsageError("a run or a session, not both")
    if run_id is None and session is None:
        latest = [("OPENED (UTC)", "STREAM"), *asyncio.run(_latest(owner))]
        for line in _table(latest, right=()):
            click.echo(line)
        return
    rows = [("KEY", "CHUNKS", "KEPT FROM", "ATTEMPTS", "STATE", "TYPE")]
    for head in _channels(owner, session) if session else _of_run(owner, run_id or ""):
        state = head.closed or "open"
        numbers = (str(head.end), str(head.first), str(head.epoch))
        rows.append((shown(head.slot.key), *numbers, state, shown(head.content_type)))
    for line in _table(rows, right=(1, 2, 3)):
        click.echo(line)


@streams.command()
@one_stream()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_context
def head(ctx: click.Context, slot: Slot, as_json: bool) -> None:
    """Show the state of one stream."""
    facts = _facts(streams_of(ctx).runtime.store.head(slot))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        say(f"{name:<13} {'-' if value is None else value}")


@streams.command()
@one_stream(paths=False)
@click.pass_context
def revoke(ctx: click.Context, slot: Slot) -> None:
    """Withdraw the write credentials of a stream; who may still write gets new ones."""
    runtime = streams_of(ctx).runtime
    runtime.store.head(slot)  # a name nobody has written to is a mistake worth telling
    count = runtime.authority.revoke(slot)
    say(f"withdrew {count} credential{'' if count == 1 else 's'} of {slot}")


@streams.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check settings, server and permissions, and say what to do."""
    findings: list[Finding] = []
    with app_errors():
        for finding in examine(streams_of(ctx), app_of(ctx)):
            findings.append(finding)
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
            label = click.style(f"{finding.level:<4}", fg=colour, bold=True)
            click.echo(f"{label}  {finding.what:<19} {finding.detail}")
            if finding.advice:
                click.echo(f"{'':<26}-> {finding.advice}")
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    click.echo(f"{len(findings)} checks: {failed} failed, {warned} to look at")
    ctx.exit(1 if failed else 0)


streams.add_command(serve)
streams.add_command(token)


def _of_run(owner: Streams, run_id: str) -> list[Head]:
    return [owner.head(run_id, key) for key in owner.keys(run_id)]


def _channels(owner: Streams, session_id: str) -> list[Head]:
    """Those of a session's channels that are there."""
    session, found = owner.session(session_id), []
    for channel in (session.out, session.inbox):
        with suppress(StreamNotFound):
            found.append(channel.head())
    if not found:
        raise StreamNotFound(f"session {session_id} has no streams (yet), or they have expired")
    return found


async def _latest(owner: Streams) -> list[tuple[str, str]]:
    """When the last streams were opened, and which they are."""
    store = owner.runtime.protocol_store()
    try:
        found = await store.recent("run", _LATEST) + await store.recent("session", _LATEST)
    finally:
        if close := getattr(store, "aclose", None):
            await close()
    found.sort(key=lambda each: each[1], reverse=True)
    return [
        (f"{datetime.fromtimestamp(opened_at, UTC):%Y-%m-%d %H:%M:%S}", shown(str(slot)))
        for slot, opened_at in found[:_LATEST]
    ]


def _facts(head: Head) -> dict[str, Any]:
    return {
        "stream": str(head.slot),
        "end": head.end,
        "first": head.first,
        "closed": head.closed,
        "attempts": head.epoch,
        "content_type": head.content_type,
    }


def _table(rows: Sequence[Sequence[str]], *, right: Iterable[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = set(right)
    for row in rows:
        cells = [
            cell.rjust(width) if place in numeric else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(text: str) -> None:
    with suppress(OSError):
        say(text, err=True)


__all__ = ["streams"]
