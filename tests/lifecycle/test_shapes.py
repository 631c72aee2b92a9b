"""However a task is declared or called, it streams."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_streams import (
    ConfigurationError,
    OutsideTask,
    RunFinished,
    Slot,
    StreamNotFound,
    Streams,
    current_streams,
)
from tests.lifecycle.client import APP, Client, chunks_of
from tests.servers import ValkeyProcess


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("unbound", (2,), [0, 1]),
        ("shared", (), ["shared"]),
        ("calling", (), ["before the body", "body", "after the body"]),
        ("hooked", (), ["before_start", "body", "on_success", "after_return"]),
        ("classy", ("word",), ["word"]),
        ("late", (), ["late"]),
        ("validated", ({"text": "why?"},), [{"text": "why?"}]),
    ],
)
def test_a_task_of_any_shape_streams(
    prefork: Client, eager: Any, task: str, arguments: tuple[Any, ...], expected: list[Any]
) -> None:
    """In a worker, eagerly, and by ``apply()``: the same chunks, and the stream ends."""
    run_id, _ = prefork.run(task, *arguments)
    assert prefork.end(run_id) == "SUCCESS"
    assert prefork.chunks(run_id) == expected
    here = eager.app.tasks[f"{APP}.{task}"]
    for result in (here.delay(*arguments), here.apply(arguments)):
        result.get()
        assert prefork.chunks(result.id) == expected
        assert prefork.closed(result.id) == "SUCCESS"


def test_a_task_called_as_a_function_outside_any_task_is_a_run_of_its_own(
    prefork: Client, eager: Any
) -> None:
    """The call gets a run id, and its streams end when it returns or raises."""
    run_id = eager.unbound(3)
    assert prefork.chunks(run_id) == [0, 1, 2]
    assert prefork.closed(run_id) == "SUCCESS"
    assert eager.inner() != eager.inner()
    with pytest.raises(OutsideTask):
        current_streams.write("after it")
    before = set(_runs(prefork))
    eager.calling()
    (called,) = set(_runs(prefork)) - before
    assert prefork.chunks(called) == ["before the body", "body", "after the body"]
    with pytest.raises(ValueError, match="as asked"):
        eager.hooked(True)
    assert len(before) + 2 == len(_runs(prefork))


def test_a_task_called_as_a_function_inside_a_task_is_part_of_its_run(
    prefork: Client, eager: Any
) -> None:
    """A plain call writes to the caller's stream; ``apply()`` is a run of its own."""
    for run_id, (called, applied) in (
        prefork.run("outer"),
        ((result := eager.outer.delay()).id, result.get()),
    ):
        assert called == run_id != applied
        assert prefork.chunks(run_id) == ["outer", "inner", "outer again"]
        assert prefork.chunks(applied) == ["inner"]
        assert prefork.closed(applied) == "SUCCESS"


def test_the_attempts_of_an_eager_run_continue_one_stream(prefork: Client, eager: Any) -> None:
    """An eager retry runs inside the attempt it replaces, and must fence it all the same."""
    result = eager.again.delay(40)
    assert result.get() == 3
    chunks = prefork.chunks(result.id)
    assert [chunk["number"] for chunk in chunks] == list(range(40))
    assert [chunk["attempt"] for chunk in chunks] == [1] * 20 + [2] * 10 + [3] * 10
    assert prefork.closed(result.id) == "SUCCESS"
    automatic = eager.automatic.delay()
    assert automatic.get() == 3
    assert prefork.chunks(automatic.id) == [1, 2, 3]
    replaced = eager.replaced.apply(("single",))
    assert replaced.get() == 3
    assert prefork.chunks(replaced.id)[-3:] == [[replaced.id, number] for number in range(3)]
    assert prefork.closed(replaced.id) == "SUCCESS"


def test_a_chain_a_group_and_a_chord_are_runs_that_do_not_mix(prefork: Client, eager: Any) -> None:
    """Each member streams to its own run, and each stream ends."""
    count = prefork.app.signature
    chained = chain(*(count(f"{APP}.count", (n,), immutable=True) for n in (1, 2, 3)))
    grouped = group(count(f"{APP}.count", (n,)) for n in (4, 5))
    last = chained.apply_async()
    members = grouped.apply_async()
    joined = chord(
        [count(f"{APP}.count", (n,)) for n in (6, 7)],
        count(f"{APP}.count", (8,), immutable=True),
    ).apply_async()
    assert last.get(timeout=30) == 3
    assert members.get(timeout=30) == [4, 5]
    assert joined.get(timeout=30) == 8
    runs = [last.parent.parent, last.parent, last, *members, *joined.parent, joined]
    for result, size in zip(runs, range(1, 9), strict=True):
        assert prefork.chunks(result.id) == [[result.id, number] for number in range(size)]
        assert prefork.end(result.id) == "SUCCESS"


def test_an_app_beside_one_with_streams_is_not_touched(lifecycle_server: ValkeyProcess) -> None:
    """Two apps in one process: the one without streams keeps its tasks as they are."""
    with_streams = Celery("with", set_as_current=False)
    without = Celery("without", set_as_current=False)
    for app in (with_streams, without):
        app.conf.task_always_eager = True
    streams = Streams(with_streams, url=lifecycle_server.url, secret="test secret")

    @with_streams.task(bind=True, name="write", shared=False)
    def write(self: Any) -> str:
        self.streams.write("here")
        return str(plain.apply().result)

    @without.task(bind=True, name="write", shared=False)
    def plain(self: Any) -> str:
        assert not hasattr(self, "streams")
        return str(self.request.id)

    result = write.delay()
    assert result.get() != result.id
    assert chunks_of(streams, Slot.run(result.id)) == ["here"]
    with pytest.raises(StreamNotFound):
        streams.head(plain.apply().id)
    with pytest.raises(ConfigurationError, match=r"use app\.streams"):
        Streams(with_streams)
    with pytest.raises(ConfigurationError, match="another app"):
        streams.init_app(without)
    assert streams.init_app(with_streams) is streams
    streams.close()


def test_an_app_with_streams_can_be_pickled_and_used_from_the_command_line(
    prefork: Client, eager: Any
) -> None:
    """Celery sends apps and tasks to other processes by pickle."""
    again = pickle.loads(pickle.dumps(eager.app))
    assert again.main == eager.app.main
    assert pickle.loads(pickle.dumps(eager.count)).name == eager.count.name
    listed = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "inspect", "registered", "--timeout", "5"],
        env={
            "PATH": "",
            "TEST_BROKER_URL": prefork.worker.broker_url,
            "TEST_RESULT_BACKEND": prefork.worker.result_backend,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{APP}.count" in listed.stdout, listed.stdout + listed.stderr


def test_a_run_can_write_to_its_relatives(prefork: Client, tmp_path: Any) -> None:
    """Children write to the parent's and the root's stream while that run lasts."""
    for target in ("parent", "root"):
        path = tmp_path / target
        result = prefork.send("parent", target, 3, str(path))
        chunks = prefork.wait_chunks(result.id, 4)
        path.touch()
        result.get(timeout=30)
        assert chunks[0] == "parent"
        assert [chunk[1] for chunk in chunks[1:]] == [target] * 3
        assert prefork.end(result.id) == "SUCCESS"


def test_a_run_without_relatives_is_its_own(prefork: Client, eager: Any) -> None:
    """Its own parent, its own root; and it may name itself by its id."""
    for target in ("parent", "root"):
        run_id, _ = prefork.run("relative", target)
        assert prefork.chunks(run_id) == [[run_id, target]]
        assert prefork.end(run_id) == "SUCCESS"
    run_id, _ = prefork.run("relative", "0123", task_id="0123")
    assert prefork.chunks("0123") == [["0123", "0123"]]


def test_writing_to_a_run_that_has_ended_or_never_was_says_so(prefork: Client) -> None:
    """By target or from outside: ``RunFinished`` with the state, ``StreamNotFound`` with advice."""
    over, _ = prefork.run("count", 1)
    prefork.end(over)
    with pytest.raises(Exception, match=r"has finished \(SUCCESS\)") as raised:
        prefork.run("relative", over)
    assert type(raised.value).__name__ == "RunFinished"
    with pytest.raises(Exception, match="nothing is known of a run 'nobody'") as raised:
        prefork.run("relative", "nobody")
    assert type(raised.value).__name__ == "StreamNotFound"
    with pytest.raises(RunFinished, match=r"has finished \(SUCCESS\)") as finished:
        prefork.streams.write_to(over)
    assert finished.value.state == "SUCCESS"
    with pytest.raises(StreamNotFound, match="create=True"):
        prefork.streams.write_to("nobody")


def test_outside_a_task_the_error_says_what_to_use(eager: Any) -> None:
    """Writing where no task runs names the call that works there."""
    for use in (
        lambda: current_streams.write(1),
        lambda: eager.count.streams.write(1),
        lambda: eager.app.tasks[f"{APP}.classy"].streams,
    ):
        with pytest.raises(OutsideTask, match=r"streams\.write_to\(run_id, key\)"):
            use()
    with pytest.raises(OutsideTask, match="base=ChatAgent"):
        eager.agent.chat.response.write({})


def test_anybody_can_write_to_a_running_task_from_outside(prefork: Client, tmp_path: Any) -> None:
    """A writer from outside is one more producer on the run's stream."""
    result = prefork.send("wait_for", str(tmp_path / "go"), 2)
    prefork.wait_chunks(result.id, 2)
    with prefork.streams.write_to(result.id) as writer:
        writer.write("from outside")
        assert writer.wait().count == 1
    with prefork.streams.write_to(result.id, "extra") as writer:
        assert writer.append("another key") == 0
    (tmp_path / "go").touch()
    result.get(timeout=30)
    assert prefork.chunks(result.id) == [0, 1, "from outside"]
    assert prefork.end(result.id, "extra") == "SUCCESS"
    queued = prefork.streams.write_to(f"queued-{result.id}", create=True)
    assert queued.append("first") == 0


def _runs(client: Client) -> list[str]:
    keys = client.streams.runtime.link.client.keys("cs/{run/*}/keys")
    return [key.decode().split("{run/")[1].split("}")[0] for key in keys]
