"""``celery -A proj streams ...`` on real servers, with a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import Streams
from celery_streams.cli import streams as group
from celery_streams.gateway import create_app
from example_project import documentation, tokens
from tests.gateway.serving import ask
from tests.servers import Cluster, RedisProcess, ServerProcess, ValkeyProcess
from tests.workers import BROKER_DB, RESULT_DB, ROOT, Worker, worker

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def assistant(valkey: ValkeyProcess) -> Iterator[Worker]:
    """A worker of the example project."""
    environment = {
        "CELERY_BROKER_URL": valkey.url_for(db=BROKER_DB),
        "CELERY_RESULT_BACKEND": valkey.url_for(db=RESULT_DB),
    }
    with worker("example_project.app", valkey, env=environment) as running:
        yield running


@pytest.fixture
def celery(assistant: Worker) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``celery -A example_project.app streams ...`` as a user types it, to its end."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            **assistant.env,
            "PYTHONPATH": str(ROOT),
            "CELERY_STREAMS_URL": assistant.streams_url,
            "CELERY_STREAMS_SECRET": "test secret",
        }
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "example_project.app", "streams", *words],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


@pytest.fixture
def terminal(assistant: Worker) -> Callable[..., str]:
    """The same with a terminal as standard output and error; returns what that is sent."""

    def run(*words: str) -> str:
        environment = {
            **os.environ,
            **assistant.env,
            "PYTHONPATH": str(ROOT),
            "CELERY_STREAMS_URL": assistant.streams_url,
            "CELERY_STREAMS_SECRET": "test secret",
        }
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "example_project.app", "streams", *words],
                env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
            )  # fmt: skip
        finally:
            os.close(theirs)
        sent = b""
        with process, suppress(OSError):  # EIO: nobody has the other side any more
            while data := os.read(ours, 65536):
                sent += data
        os.close(ours)
        return sent.decode().replace("\r\n", "\n")  # the terminal's own

    return run


@pytest.fixture
def command(server: ServerProcess) -> Iterator[Run]:
    """The same in this process, on each kind of server; ``command.streams`` is the app's."""
    yield from _commands(server.url)


def _commands(url: str, **settings: Any) -> Iterator[Run]:
    app = Celery("cli", broker="memory://", backend="cache+memory://", set_as_current=False)
    streams = Streams(app, url=url, **{"secret": "test secret", **settings})

    def run(*words: str) -> Result:
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(group, list(words), obj=context)

    run.streams = streams  # type: ignore[attr-defined]
    yield run
    streams.close()


def _write(command: Run, *chunks: Any, key: str = "default", close: bool = True) -> str:
    run_id = uuid.uuid4().hex
    streams: Streams = command.streams  # type: ignore[attr-defined]
    with streams.write_to(run_id, key, create=True) as writer:
        for chunk in chunks:
            writer.write(chunk)
    if close:
        streams.close_stream(writer.slot)
    return run_id


def test_tail_prints_a_running_tasks_answer_as_text(
    assistant: Worker, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Text on standard output and nothing else there; how it ended on standard error."""
    text = documentation.answer("asyncio")
    run = assistant.app.send_task("example_project.tasks.answer", ("asyncio", 200.0))
    done = celery("tail", run.id)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text
    assert (
        done.stderr
        == f"runs/{run.id}/default: ended (SUCCESS) at offset {len(tokens.split(text))}\n"
    )


def test_tail_reads_a_sessions_channel(
    assistant: Worker, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A session goes on after the turn, so tail gives up after the timeout, with its offset."""
    session = uuid.uuid4().hex
    assistant.app.send_task("example_project.tasks.agent", (session, "asyncio", 0)).get(timeout=30)
    done = celery("tail", "--session", session, "out", "--timeout", "0.5")
    parts = [json.loads(line) for line in done.stdout.splitlines()]
    assert parts[0]["type"] == "start"
    assert parts[-1] == {"type": "finish"}
    assert done.returncode == 1
    assert f"go on with --offset {len(parts)}" in done.stderr


@pytest.mark.parametrize(
    ("offset", "shown"),
    [("0", "abcd"), ("2", "cd"), ("-1", "d"), ("-9", "abcd"), ("now", "")],
)
def test_tail_starts_where_it_is_told(command: Run, offset: str, shown: str) -> None:
    """A number, the last n, or what comes from now on."""
    run_id = _write(command, *"abcd")
    done = command("tail", run_id, "--offset", offset)
    assert (done.exit_code, done.stdout.strip()) == (0, shown)
    assert "ended (CLOSED) at offset 4" in done.stderr


def test_tail_prints_what_is_not_text_as_json(command: Run) -> None:
    """Values are JSON on lines of their own; with --json text is, too."""
    run_id = _write(command, "one", {"n": 2}, "\n", [3], key="mixed")
    assert command("tail", run_id, "mixed").stdout == 'one\n{"n": 2}\n\n[3]\n'
    assert command("tail", run_id, "mixed", "--json").stdout == '"one"\n{"n": 2}\n"\\n"\n[3]\n'


def test_tail_says_where_to_go_on_after_a_timeout(command: Run) -> None:
    """An open stream that falls silent: exit code 1, and the offset to resume at."""
    run_id = _write(command, "a", "b", close=False)
    done = command("tail", run_id, "--timeout", "0.3")
    assert done.exit_code == 1
    assert done.stdout == "ab\n"
    assert done.stderr == f"runs/{run_id}/default: no chunk for 0.3 s; go on with --offset 2\n"


def test_ls_shows_every_stream_of_a_run(command: Run) -> None:
    """Keys with their chunks and states, under headings."""
    run_id = _write(command, "a", "b")
    streams: Streams = command.streams  # type: ignore[attr-defined]
    with streams.write_to(run_id, "rows", create=True) as writer:
        writer.write({"n": 1})
    heading, first, second = command("ls", run_id).stdout.splitlines()
    assert heading.split()[:2] == ["KEY", "CHUNKS"]
    assert first.split()[:2] + first.split()[4:] == ["default", "2", "CLOSED", "application/json"]
    assert second.split()[:2] + second.split()[4:] == ["rows", "1", "open", "application/json"]


def test_ls_without_a_run_lists_what_was_opened_last(command: Run) -> None:
    """Streams of runs, latest first, to pick an id from."""
    older, newer = _write(command, "a"), _write(command, "b")
    heading, *lines = command("ls").stdout.splitlines()
    assert heading.split() == ["OPENED", "(UTC)", "STREAM"]
    names = [line.split()[2] for line in lines]
    assert names.index(f"runs/{newer}/default") < names.index(f"runs/{older}/default")
    assert len(lines) <= 50


def test_head_shows_one_stream(command: Run) -> None:
    """For people, and for programs."""
    run_id = _write(command, "a", "b")
    assert "end           2\n" in command("head", run_id).stdout
    told = json.loads(command("head", run_id, "--json").stdout)
    assert told["stream"] == f"runs/{run_id}/default"
    assert (told["end"], told["closed"]) == (2, "CLOSED")


def test_revoke_withdraws_credentials_and_writers_get_new_ones(command: Run) -> None:
    """One credential withdrawn; whoever may write goes on, through a second initialize."""
    run_id = _write(command, "a", close=False)
    assert command("revoke", run_id).stdout == f"withdrew 1 credential of runs/{run_id}/default\n"
    streams: Streams = command.streams  # type: ignore[attr-defined]
    streams.write_to(run_id, create=True).append("b")
    assert streams.stats().initializes == 2


def test_every_command_names_a_sessions_channel_the_same_way(command: Run) -> None:
    """``--session ID [out|in]`` for tail, head and revoke; ls shows the channels there are."""
    streams: Streams = command.streams  # type: ignore[attr-defined]
    name = uuid.uuid4().hex
    session = streams.session(name)
    session.out.append("answer")
    lines = command("ls", "--session", name).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["KEY", "out"]
    session.inbox.append("question")
    lines = command("ls", "--session", name).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["out", "1"], ["in", "1"]]
    assert json.loads(command("head", "--session", name, "--json").stdout)["end"] == 1
    told = command("head", "--session", name, "in").stdout
    assert f"sessions/{name}/in" in told
    said = command("revoke", "--session", name, "in").stdout
    assert said == f"withdrew 1 credential of sessions/{name}/in\n"
    session.out.close()
    assert command("tail", "--session", name).stdout == "answer\n"
    assert session.out.revoke() == 1  # its own: the command took the other channel's


def test_a_path_names_any_stream_as_its_url_does(command: Run) -> None:
    """Those that clients have created, and those that tasks write, as ``ls`` prints them."""
    streams: Streams = command.streams  # type: ignore[attr-defined]
    path = f"notes/{uuid.uuid4().hex}"

    async def create() -> None:
        app = create_app(streams, insecure=True)
        url, kind = f"/v1/stream/{path}", "text/plain"
        assert (await ask(app, "PUT", url, content_type=kind)).status == 201
        posted = await ask(app, "POST", url, b"said", content_type=kind, stream_closed="true")
        assert posted.status == 204
        await app.aclose()

    asyncio.run(create())
    told = json.loads(command("head", "--path", path, "--json").stdout)
    assert (told["stream"], told["end"], told["content_type"]) == (path, 1, "text/plain")
    tailed = command("tail", "--path", path)
    assert tailed.stdout == "said\n"
    assert f"{path}: ended (CLOSED) at offset 1" in tailed.stderr
    run_id = _write(command, "a", key="progress")
    assert command("tail", "--path", f"runs/{run_id}/progress").stdout == "a\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ls", "nobody"), "nobody"),
        (("ls", "--session", "nobody"), "nobody"),
        (("ls", "run", "--session", "s"), "not both"),
        (("head", "--session", "nobody"), "sessions/nobody/out"),
        (("head", "--path", "no/such"), "no/such"),
        (("head", "--path", "a//b"), "segment"),
        (("tail", "--path", "a", "b"), "too many"),
        (("tail", "--path", "a", "--session", "b"), "two streams"),
        (("revoke", "--path", "a"), "--path"),
        (("head", "nobody"), "runs/nobody/default"),
        (("revoke", "nobody"), "runs/nobody/default"),
        (("tail", "../etc"), "reserved"),
        (("head", "run", "a\nb"), "control"),
        (("tail", "--session", "s", "sideways"), "sideways"),
        (("tail",), "which stream"),
        (("tail", "a", "b", "c"), "too many"),
        (("tail", "a", "--offset", "then"), "neither a number"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_never_as_a_traceback(
    command: Run, words: tuple[str, ...], told: str
) -> None:
    """Exit code not 0, a message that names the culprit."""
    done = command(*words)
    assert done.exit_code in (1, 2)
    assert told in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.stdout == ""


def test_an_unreachable_server_is_told_in_a_line() -> None:
    """Every command says where it could not connect; doctor lists it as a failed check."""
    for command in _commands("redis://:hidden@127.0.0.1:1/0"):
        for words in (("ls", "r"), ("head", "r"), ("revoke", "r")):
            done = command(*words)
            assert done.exit_code == 1
            assert done.stderr.startswith("Error: cannot reach Redis at redis://***@127.0.0.1:1/0")
            assert done.stderr.count("\n") == 1
        done = command("doctor")
        assert done.exit_code == 1
        assert "fail  connection" in done.stdout
        assert "hidden" not in done.output


def test_an_app_without_streams_is_told_what_to_add() -> None:
    """The message names the line that is missing."""
    context = CLIContext(app=Celery("bare", set_as_current=False), no_color=True, workdir=None)
    done = CliRunner().invoke(group, ["ls", "run"], obj=context)
    assert done.exit_code == 1
    assert "streams = Streams(app)" in done.stderr


def test_doctor_is_content_with_a_server_that_keeps_its_data() -> None:
    """Every check is listed, none fails, and the scratch stream is gone afterwards."""
    with ValkeyProcess(aof=True) as server:
        for command in _commands(server.url):
            done = command("doctor")
            assert done.exit_code == 0, done.output
            assert "0 failed, 0 to look at" in done.stdout
            for what in (
                "settings", "address", "secret", "server", "role", "memory", "persistence",
                "clock", "latency", "sharded channels", "scripts", "compare-and-delete",
                "write and read",
            ):  # fmt: skip
                assert f"ok    {what} " in done.stdout
            assert "Valkey 9" in done.stdout
            assert "native (DELIFEQ)" in done.stdout
            assert not server.client().keys("*log/*")


def test_doctor_warns_of_what_will_hurt_later() -> None:
    """Eviction of live streams, memory that is nearly nothing, no persistence, no secret."""
    options = {"maxmemory": "20mb", "maxmemory-policy": "allkeys-lru"}
    with ValkeyProcess(options=options) as server:
        for command in _commands(server.url, secret=None):
            done = command("doctor")
            assert done.exit_code == 0, done.output
            for what in ("memory", "persistence", "secret"):
                assert f"warn  {what} " in done.stdout
            assert "maxmemory-policy noeviction" in done.stdout
            assert "CELERY_STREAMS_SECRET" in done.stdout


def test_doctor_knows_the_ways_of_redis_7(redis7: RedisProcess) -> None:
    """An older server has no command to compare and delete with: the script does it."""
    for command in _commands(redis7.url):
        done = command("doctor")
        assert done.exit_code == 0, done.output
        assert "Redis 7" in done.stdout
        assert "by script" in done.stdout


def test_doctor_finds_a_permission_that_is_missing() -> None:
    """A user who may not publish: that check fails, and says which permission it needs."""
    users = {"shy": ">secret ~* &* +@all -spublish -info"}
    with ValkeyProcess(users=users) as server:
        for command in _commands(server.url_for("shy", "secret")):
            done = command("doctor")
            assert done.exit_code == 1
            assert "fail  sharded channels" in done.stdout
            assert "fail  write and read" in done.stdout


def test_doctor_refuses_a_replica(valkey: ValkeyProcess) -> None:
    """A read-only replica cannot take chunks, and the advice says where to point."""
    with ValkeyProcess(replicaof=valkey) as replica:
        for command in _commands(replica.url):
            done = command("doctor")
            assert done.exit_code == 1
            assert "fail  role" in done.stdout
            assert "point CELERY_STREAMS_URL at the primary" in done.stdout


def test_doctor_looks_at_every_node_of_a_cluster(cluster: Cluster) -> None:
    """Three primaries, three lines a check."""
    for command in _commands(cluster.url):
        done = command("doctor")
        assert done.exit_code == 0, done.output
        assert done.stdout.count("ok    server ") == 3
        assert "ok    write and read" in done.stdout


def test_a_terminal_is_shown_control_characters_and_a_pipe_gets_them(
    assistant: Worker,
    celery: Callable[..., subprocess.CompletedProcess[str]],
    terminal: Callable[..., str],
) -> None:
    """Text and JSON that would set a title, clear a line or make the terminal answer."""
    bad = "a\x1b]0;mine\x07b\x9b6nc\rd\x7f"
    run_id = uuid.uuid4().hex
    with closing(Streams(url=assistant.streams_url, secret="test secret")) as streams:
        with streams.write_to(run_id, create=True) as writer:
            writer.write(f"tab\there {bad} line\r\n")
            writer.write({"text": bad, "\x85": 1})
        streams.close_stream(writer.slot)
        head = streams.head(run_id)
    assert head.end == 2
    seen = terminal("tail", run_id)
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - set("\n\t")
    assert not controls & set(seen)
    shown = "a\\u001b]0;mine\\u0007b\\u009b6nc\\u000dd\\u007f"
    assert seen.startswith(f"tab\there {shown} line\n")
    assert "at offset 2" in seen
    raw = celery("tail", run_id).stdout
    assert raw.startswith(f"tab\there {bad[:4]}")
    assert "\x9b" in raw
    listed = terminal("ls", run_id)
    assert "default" in listed
