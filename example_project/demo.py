"""``make demo``: watch a Celery worker stream to another process, and try to break it.

Ends with a table; exits with 1 unless every stream was initialized once and nothing was lost
or came twice.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console

from example_project import audit, documentation, gateway, model, tokens, views
from example_project.counting import initialize_counts
from example_project.stage import Recording, Stage, StageError, kill

_SECONDS_PER_ANSWER = 5.0
_PROBES, _PROBE_INTERVAL = 400, 0.004
_PATIENCE = 90.0
_AT_ONCE = ("asyncio", "functools.lru_cache", "dataclasses.dataclass", "pathlib", "str.split")
_TURNS = ("What does functools.partial do?", "And zip?")


class Demo:
    """The acts. Each shows something, and leaves what it received to be checked at the end."""

    def __init__(self, stage: Stage, console: Console, topic: str) -> None:
        # Imported here: the app looks its addresses up when it is imported.
        from example_project import tasks
        from example_project.app import streams

        self._stage = stage
        self._console = console
        self._topic = topic
        self._tasks = tasks
        self._streams = streams
        self._checked: list[audit.Checked] = []
        self._latencies: list[float] = []
        self._over_http: audit.Checked | None = None

    def token(self) -> str:
        """What opens the gateway's page."""
        return self._streams.token(["read:*"])

    def play(self) -> bool:
        """All acts and the table; whether everything was as it must be."""
        acts: tuple[Callable[[], None], ...] = (
            self.one_answer,
            self.cut_off,
            self.killed,
            self.conversation,
            self.at_once,
            self.latency,
        )
        for act in acts:
            act()
        return self._verdict()

    def one_answer(self) -> None:
        """Tokens on one stream, progress on another, both read live; the tokens by HTTP, too."""
        self._heading("1", "A worker writes, this process reads", "two streams of one run")
        run = self._ask(self._topic)
        answer, progress = self._record(run), self._record(run, "progress")
        url = gateway.run_url(self._stage.address, run.id)
        by_http = Recording(gateway.read(url, gateway.token_for(self._streams, run.id)))
        title = f"answer({self._topic!r})"

        def view() -> Any:
            whole = not answer.is_alive()
            return views.answer(title, answer.chunks, progress.chunks, whole=whole)

        with views.live(self._console, view):
            answer.wait(_PATIENCE), progress.wait(_PATIENCE)
        self._note(f"the reader was told the end: {answer.reader.closed}")
        received = by_http.wait(_PATIENCE)
        self._over_http = audit.check("over HTTP", run.id, answer.chunks, received)
        self._check_answer("one answer", run, self._topic, answer.chunks, progress.chunks)

    def cut_off(self) -> None:
        """A reader goes away in mid-stream; the next one starts at its offset."""
        self._heading("2", "A reader is cut off, and resumes", "offset in hand, nothing missed")
        run = self._ask(self._topic)
        progress = self._record(run, "progress")
        half = max(1, self._length(self._topic) // 2)
        first = self._record(run, stop_at=half)
        parts: list[tuple[str, Sequence[str]]] = [("first reader", first.chunks)]
        whole = False

        def view() -> Any:
            return views.spans(f"answer({self._topic!r})", parts, whole=whole)

        with views.live(self._console, view):
            first.join(_PATIENCE)
            offset = first.reader.offset
            time.sleep(1.0)  # the time that a browser needs to come back
            missed = self._streams.head(run.id).end - offset
            second = self._record(run, offset=offset)
            parts.append((f"resumed at {offset}", second.chunks))
            second.wait(_PATIENCE)
            whole = True
        self._note(f"{missed} chunks were written while nobody was reading")
        received = [*first.wait(), *second.chunks]
        self._check_answer("cut off and resumed", run, self._topic, received, progress.wait())

    def killed(self) -> None:
        """SIGKILL of the worker's child; the next attempt goes on where the last one was."""
        self._heading("3", "The worker process is killed in mid-stream", "SIGKILL, no mercy")
        run = self._ask(self._topic)
        answer, progress = self._record(run), self._record(run, "progress")
        boundary: list[int] = []

        def view() -> Any:
            cut = boundary[0] if boundary else len(answer.chunks)
            parts = [("attempt 1", answer.chunks[:cut])]
            if boundary and len(answer.chunks) > cut:
                parts.append(("attempt 2", answer.chunks[cut:]))
            whole = not answer.is_alive()
            return views.spans(f"answer({self._topic!r})", parts, whole=whole)

        with views.live(self._console, view):
            answer.wait_for(max(1, self._length(self._topic) // 3))
            pid = self._pid_of(run)
            kill(pid)
            killed_at = time.monotonic()
            boundary.append(self._streams.head(run.id).end)
            answer.wait_for(boundary[0] + 1)
            silence = time.monotonic() - killed_at
            answer.wait(_PATIENCE)
        result = run.get(timeout=_PATIENCE)
        if result["attempt"] < 2:
            raise StageError("the run ended before its worker could be killed; try a longer topic")
        self._note(
            f"{pid} killed after chunk {boundary[0]}; attempt {result['attempt']} went on "
            f"at chunk {result['continued_at']} after {silence:.1f} s"
        )
        act = "killed, taken over"
        self._check_answer(act, run, self._topic, answer.chunks, progress.wait())

    def conversation(self) -> None:
        """A chat agent writes to its session, which outlives the runs of its turns."""
        self._heading("4", "A chat agent answers in its session", "two runs, one stream")
        session = self._streams.session("demo-chat")
        parts: list[dict[str, Any]] = []
        runs = []
        asked: list[str] = []
        whole = False

        def view() -> Any:
            kinds = collections.Counter(part["type"] for part in list(parts))
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            return views.chat("session demo-chat", _turns(asked, parts), told, whole=whole)

        with views.live(self._console, view):
            for question in _TURNS:
                asked.append(question)
                pace = self._pace(question, 0.4)
                runs.append(self._tasks.agent.delay("demo-chat", question, pace))
                reader = session.out.read(offset=len(parts), timeout=30)
                turn = Recording(reader, until=lambda part: part["type"] == "finish", into=parts)
                turn.wait(_PATIENCE)
            whole = True
        answers = [run.get(timeout=_PATIENCE) for run in runs]
        texts = [answer["text"] for answer in answers]
        act = "a session, two runs"
        expected = [
            part
            for answer, question, text in zip(answers, _TURNS, texts, strict=True)
            for part in _expected_parts(answer["message_id"], self._expected(question, text))
        ]
        if model.configured():
            expected, parts = texts, [text for _, text in _turns(asked, parts) if text in texts]
        self._checked.append(audit.check(act, "sessions/demo-chat/out", expected, parts))

    def at_once(self) -> None:
        """Several runs, two worker processes, one flusher in each."""
        self._heading("5", f"{len(_AT_ONCE)} runs at once", "two processes, ten streams")
        runs = [self._ask(topic, 0.5) for topic in _AT_ONCE]
        answers = [self._record(run) for run in runs]
        progresses = [self._record(run, "progress") for run in runs]

        def view() -> Any:
            return views.several(
                "their progress streams",
                [
                    (topic, len(one.chunks), two.chunks[-1] if two.chunks else None)
                    for topic, one, two in zip(_AT_ONCE, answers, progresses, strict=True)
                ],
            )

        with views.live(self._console, view):
            for recording in (*answers, *progresses):
                recording.wait(_PATIENCE)
        for topic, run, one, two in zip(_AT_ONCE, runs, answers, progresses, strict=True):
            self._check_answer(f"{len(_AT_ONCE)} at once", run, topic, one.chunks, two.chunks)

    def latency(self) -> None:
        """From ``write()`` in the worker to the chunk in this process, by one host's clock."""
        run = self._tasks.probe.delay(_PROBES, _PROBE_INTERVAL)
        stamps = []
        for stamp in self._streams.read(run.id, timeout=30):
            self._latencies.append((time.monotonic_ns() - stamp) / 1e6)
            stamps.append(stamp)
        # The stamps are the worker's: complete, and each later than the one before.
        expected = sorted(set(stamps)) if len(set(stamps)) == _PROBES else [None] * _PROBES
        self._checked.append(
            audit.check("latency probe", f"runs/{run.id}/default", expected, stamps)
        )

    def _verdict(self) -> bool:
        rows = audit.rows(self._checked, initialize_counts(self._stage.server))
        total = audit.total(rows)
        self._heading("=", "What arrived", "compared with what was meant, chunk by chunk")
        self._console.print(views.results(rows, total))
        p50, p99 = (audit.percentile(self._latencies, share) for share in (0.5, 0.99))
        self._console.print(
            f"write to read: p50 [bold]{p50:.1f} ms[/], p99 [bold]{p99:.1f} ms[/] "
            f"({len(self._latencies)} chunks)"
        )
        good = all(row.good for row in rows)
        if http := self._over_http:
            self._console.print(
                f"read over HTTP: [bold]{http.chunks} chunks[/], "
                f"{http.lost} lost, {http.duplicated} duplicated"
            )
            good = good and not http.lost and not http.duplicated
        if good:
            self._console.print(
                "[bold green]OK[/]  one initialize a stream; nothing lost, nothing twice"
            )
        return good

    def _ask(self, question: str, share: float = 1.0) -> Any:
        return self._tasks.answer.delay(question, self._pace(question, share))

    def _record(self, run: Any, key: str = "default", *, offset: int = 0, **how: Any) -> Recording:
        return Recording(self._streams.read(run.id, key, offset=offset, timeout=30), **how)

    def _length(self, question: str) -> int:
        if model.configured():
            return 60
        return len(tokens.split(documentation.answer(question)))

    def _pace(self, question: str, share: float) -> float:
        return max(30.0, self._length(question) / (_SECONDS_PER_ANSWER * share))

    def _expected(self, question: str, text: str) -> list[str]:
        if model.configured():
            return [text]
        return tokens.split(documentation.answer(question))

    def _check_answer(
        self, act: str, run: Any, question: str, received: list[str], progressed: list[Any]
    ) -> None:
        expected = self._expected(question, run.get(timeout=_PATIENCE)["text"])
        steps = self._tasks.expected_progress(len(expected))
        if model.configured():  # only the model knew what it would say, and how long
            received, steps = ["".join(received)], progressed
        self._checked.append(audit.check(act, f"runs/{run.id}/default", expected, received))
        self._checked.append(audit.check(act, f"runs/{run.id}/progress", steps, progressed))

    def _pid_of(self, run: Any) -> int:
        info = run.info
        if not isinstance(info, dict) or "pid" not in info:
            raise StageError(f"the run is {run.state} and cannot be killed; try a longer topic")
        return int(info["pid"])

    def _heading(self, number: str, title: str, aside: str) -> None:
        self._console.print()
        self._console.print(f"[bold]{number}  {title}[/]  [dim]{aside}[/]", soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(f"   [dim]{text}[/]")


def _turns(asked: Sequence[str], parts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Questions and the texts of their answers, assembled from the parts as a client does."""
    texts: list[str] = []
    for part in list(parts):
        if part["type"] == "start":
            texts.append("")
        elif part["type"] == "text-delta":
            texts[-1] += part["delta"]
    texts += [""] * (len(asked) - len(texts))
    return list(zip(asked, texts, strict=False))


def _expected_parts(message_id: str, pieces: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"type": "start", "messageId": message_id},
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
        *({"type": "text-delta", "id": "text-1", "delta": piece} for piece in pieces),
        {"type": "text-end", "id": "text-1"},
        {"type": "finish"},
    ]


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--topic", default="json.dumps", help="what to ask about")
    topic = parser.parse_args(arguments).topic or "json.dumps"
    signal.signal(signal.SIGTERM, _terminated)
    console = views.make_console()
    if not model.configured():
        try:
            documentation.topic_of(topic)
        except documentation.UnknownTopic as unknown:
            hint = f"; did you mean {', '.join(unknown.close)}?" if unknown.close else ""
            console.print(f"{unknown}{hint}")
            return 2
    stage = Stage()
    try:
        return _on(stage, console, topic)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        console.print("\n[bold red]FAILED[/]")
        console.print(str(error) or repr(error), markup=False, soft_wrap=True)
        if stage.worker_log.exists():
            console.print(f"the worker's log: {stage.worker_log}", soft_wrap=True)
        return 1


def _on(stage: Stage, console: Console, topic: str) -> int:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        with console.status("starting Valkey and a worker"):
            stack.enter_context(stage)
        console.print(
            f"[bold]celery-streams[/]  [dim]{stage.server_version} embedded; worker "
            f"{stage.worker_pid}, 2 children; reader {os.getpid()}[/]"
        )
        demo = Demo(stage, console, topic)
        console.print(f"[dim]watch it at {stage.address}/ too, until it ends; the page's token:[/]")
        console.print(demo.token(), style="dim", soft_wrap=True, highlight=False)
        if not demo.play():
            raise StageError("not everything arrived as it must: see the red numbers above")
        console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
