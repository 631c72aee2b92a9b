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
from celery_streams.cli.printer import Printer, say, shown
from celery_streams.cli.project import app_errors, app_of, streams_of
from celery_streams.cli.serve import serve
from celery_streams.cli.token import token
from celery_streams.contracts import Head, Offset
from celery_streams.errors import ReadTimeout, StreamError
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
@click.argument("names", metavar="RUN_ID [KEY]", nargs=-1)
@click.option("--session", metavar="ID", help="Tail a session's channel: [out|in] is the argument.")
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
def tail(
    ctx: click.Context,
    names: Sequence[str],
    session: str | None,
    offset: Offset,
    as_json: bool,
    timeout: float,
) -> None:
    """Print a stream's chunks, live, until it ends.

    Text is printed as it comes, everything else as JSON; control characters are shown to a
    terminal, not sent. How the stream ended is said on standard error.
    """
    slot = _slot(names, session)
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
@click.pass_context
def ls(ctx: click.Context, run_id: str | None) -> None:
    """List the streams of a run: chunks, attempts, and whether they have ended.

    Without a run: the streams of runs and sessions that were opened last.
    """
    owner = streams_of(ctx)
    if run_id is None:
        latest = [("OPENED (UTC)", "STREAM"), *asyncio.run(_latest(owner))]
        for line in _table(latest, right=()):
            click.echo(line)
        return
    rows = [("KEY", "CHUNKS", "KEPT FROM", "ATTEMPTS", "STATE", "TYPE")]
    for key in owner.keys(run_id):
        head = owner.head(run_id, key)
        state = head.closed or "open"
        numbers = (str(head.end), str(head.first), str(head.epoch))
        rows.append((shown(key), *numbers, state, shown(head.content_type)))
    for line in _table(rows, right=(1, 2, 3)):
        click.echo(line)


@streams.command()
@click.argument("run_id")
@click.argument("key", default="default")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_context
def head(ctx: click.Context, run_id: str, key: str, as_json: bool) -> None:
    """Show the state of one stream."""
    facts = _facts(streams_of(ctx).head(run_id, key))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        say(f"{name:<13} {'-' if value is None else value}")


@streams.command()
@click.argument("run_id")
@click.argument("key", default="default")
@click.pass_context
def revoke(ctx: click.Context, run_id: str, key: str) -> None:
    """Withdraw the write credentials of a stream; who may still write gets new ones."""
    owner = streams_of(ctx)
    owner.head(run_id, key)  # a name nobody has written to is a mistake worth telling
    count = owner.revoke(run_id, key)
    click.echo(f"withdrew {count} credential{'' if count == 1 else 's'} of runs/{run_id}/{key}")


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


def _slot(names: Sequence[str], session: str | None) -> Slot:
    most = 1 if session else 2
    if len(names) > most:
        raise click.UsageError(f"too many arguments: {' '.join(names[most:])}")
    if session:
        channel = names[0] if names else "out"
        if channel not in ("out", "in"):
            raise click.UsageError(f"a session has the channels out and in, not {channel!r}")
        return Slot.session(session, "in" if channel == "in" else "out")
    if not names:
        raise click.UsageError("which run? Give its id (the task id), or --session ID")
    return Slot.run(*names)


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
