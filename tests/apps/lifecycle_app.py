"""Tasks of every shape that Celery knows, each of which streams."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import current_process, get_context
from typing import Any

import pydantic
from celery import Celery, Task, chain, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_streams import ChatAgent, StreamNotFound, Streams, current_chat, current_streams

app = Celery("lifecycle")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    result_extended=True,
)
streams = Streams(app)


@app.task(bind=True)
def count(self: Any, to: int, pause: float = 0.0) -> int:
    """Write the numbers below ``to``."""
    for number in range(to):
        self.streams.write([self.request.id, number])
        if pause:
            time.sleep(pause)
    return to


@app.task
def pid() -> int:
    """Write nothing."""
    return os.getpid()


@app.task
def unbound(to: int) -> str:
    """Write through the proxy."""
    for number in range(to):
        current_streams.write(number)
    return current_streams.run_id


@shared_task(bind=True, name="tests.apps.lifecycle_app.shared")
def shared(self: Any) -> None:
    """A shared task streams in the app that runs it."""
    self.streams.write("shared")


class Calling(Task):
    """A user's base class with a call of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.streams.write("before the body")
        result = super().__call__(*args, **kwargs)
        self.streams.write("after the body")
        return result


@app.task(bind=True, base=Calling)
def calling(self: Any) -> None:
    """The body of a task whose class wraps the call."""
    self.streams.write("body")


class Hooked(Task):
    """A user's base class that writes from the hooks."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.streams.write("before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.streams.write("on_success")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.streams.write("on_failure")

    def after_return(self, *args: Any) -> None:
        self.streams.write("after_return")


@app.task(bind=True, base=Hooked)
def hooked(self: Any, fail: bool = False) -> None:
    """The body between the hooks."""
    self.streams.write("body")
    if fail:
        raise ValueError("as asked")


class Classy(Task):
    """A class-based task."""

    name = "tests.apps.lifecycle_app.classy"

    def run(self, word: str) -> None:
        self.streams.write(word)


app.register_task(Classy())
app.finalize()


@app.task(bind=True)
def late(self: Any) -> None:
    """Registered after the app was finalized."""
    self.streams.write("late")


class Question(pydantic.BaseModel):
    """What a task takes when it has pydantic check its arguments."""

    text: str


@app.task(bind=True, pydantic=True)
def validated(self: Any, question: Question) -> None:
    """Celery makes the model; the stream takes it."""
    self.streams.write(question)


@app.task(bind=True, autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=0)
def automatic(self: Any) -> int:
    """Fail twice, then succeed; each attempt says its number."""
    self.streams.write(self.streams.attempt)
    if self.request.retries < 2:
        raise ValueError("again")
    return self.streams.attempt


@app.task(bind=True, default_retry_delay=0)
def again(self: Any, to: int) -> int:
    """Write half of what is missing, retry, and continue exactly where the stream ends."""
    attempt = self.streams.attempt
    try:
        start = self.streams.head().end
    except StreamNotFound:
        start = 0
    stop = to if self.request.retries >= 2 else start + (to - start) // 2
    for number in range(start, stop):
        self.streams.write({"number": number, "attempt": attempt})
    if stop < to:
        raise self.retry()
    return attempt


@app.task(bind=True, default_retry_delay=0, max_retries=1)
def hopeless(self: Any) -> None:
    """Retry until Celery gives up."""
    self.streams.write(self.request.retries)
    raise self.retry(exc=ValueError("never works"))


@app.task(bind=True)
def replaced(self: Any, how: str) -> Any:
    """Hand the run to another task."""
    for number in range(500):
        self.streams.write(["replaced", number])
    if how == "single":
        return self.replace(count.si(3))
    if how == "chain":
        return self.replace(chain(count.si(1), count.si(3)))
    return self.replace(group(count.si(1), count.si(2)))


@app.task(bind=True)
def ignored(self: Any) -> None:
    """End without a result."""
    self.streams.write("ignored")
    raise Ignore


@app.task(bind=True, acks_late=True)
def rejected(self: Any, requeue: bool) -> int:
    """Refuse the message; put back, it succeeds the second time."""
    self.streams.write("rejected")
    if not requeue or not self.request.delivery_info.get("redelivered"):
        raise Reject("as asked", requeue=requeue)
    return self.streams.attempt


@app.task(bind=True, soft_time_limit=1)
def soft(self: Any, cleanup: int = 10) -> int:
    """Write until the limit strikes; returns how many writes have returned."""
    accepted = 0
    try:
        while True:
            self.streams.write(accepted)
            accepted += 1
    except SoftTimeLimitExceeded:
        for _ in range(cleanup):
            self.streams.write("cleanup")
    return accepted


@app.task(bind=True, time_limit=2, acks_late=True, default_retry_delay=0)
def hard(self: Any, retries: int = 0) -> None:
    """Write one chunk, then stay until the hard limit kills the process."""
    self.streams.append("written")
    if self.request.retries < retries:
        raise self.retry()
    time.sleep(60)


@app.task(bind=True)
def wait_for(self: Any, path: str, to: int = 1) -> int:
    """Write ``to`` chunks, then wait until a file appears."""
    for number in range(to):
        self.streams.write(number)
    self.streams.flush()
    while not os.path.exists(path):  # noqa: PTH110 - polled
        time.sleep(0.01)
    return os.getpid()


@app.task(bind=True)
def suicide(self: Any) -> None:
    """SIGKILL the process that runs this."""
    self.streams.append("last words")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def survivor(self: Any) -> int:
    """The first delivery kills its process; the second one ends well."""
    attempt = self.streams.attempt
    self.streams.append(attempt)
    if not self.request.delivery_info.get("redelivered"):
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


@app.task(bind=True, default_retry_delay=0)
def retry_then_die(self: Any) -> None:
    """A later attempt, not the first one, loses its process."""
    self.streams.append(self.streams.attempt)
    if not self.request.retries:
        raise self.retry()
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, acks_late=True)
def zombie(self: Any, to: int, path: str) -> list[int]:
    """Attempt 1 stops itself after a chunk; attempt 2 waits at the end. Both say what they are."""
    first = not self.request.delivery_info.get("redelivered")
    if first:
        self.streams.append({"attempt": 1, "pid": os.getpid()})
        # Stopped now; goes on long after its successor has finished, as far as it can tell.
        os.kill(os.getpid(), signal.SIGSTOP)
    attempt = 1 if first else self.streams.attempt
    for number in range(to):
        self.streams.write({"attempt": attempt, "number": number})
    while not first and not os.path.exists(path):  # noqa: PTH110 - polled
        time.sleep(0.01)
    return [attempt, to]


@app.task(bind=True)
def relative(self: Any, target: str, key: str = "default") -> list[str | None]:
    """Write to a relative's stream."""
    self.streams.write([self.request.id, target], key=key, target=target)
    return [self.request.id, self.request.parent_id, self.request.root_id]


@app.task(bind=True)
def parent(self: Any, target: str, children: int, path: str) -> None:
    """Start children, and wait until their file says that they are done."""
    self.streams.append("parent")
    group(relative.si(target) for _ in range(children)).apply_async()
    while not os.path.exists(path):  # noqa: PTH110 - polled
        time.sleep(0.01)


@app.task(bind=True)
def inner(self: Any) -> str:
    """What a task calls as a function: part of its run."""
    self.streams.write("inner")
    return self.streams.run_id


@app.task(bind=True)
def outer(self: Any) -> list[str]:
    """Call a task as a function, and another one eagerly."""
    self.streams.write("outer")
    called = inner()
    applied = inner.apply().result
    self.streams.write("outer again")
    return [called, applied]


@app.task(bind=True)
def threaded(self: Any, threads: int, to: int) -> None:
    """Write from several threads that this task starts, all through self.streams."""
    streams = self.streams
    barrier = threading.Barrier(threads)

    def write(number: int) -> None:
        barrier.wait(10)
        for count in range(to):
            streams.write([number, count])

    started = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def _in_child(streams: Any, number: int) -> None:
    with streams.writer(key=f"child-{number}") as writer:
        for count in range(20):
            writer.write([number, count])


@app.task(bind=True)
def forking(self: Any, children: int) -> list[int]:
    """Fork while the flusher and other threads are busy; parent and children write."""
    stop = threading.Event()
    streams = self.streams

    def busy(number: int) -> None:
        while not stop.is_set():
            streams.write(number, key=f"busy-{number}")

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    context = get_context("fork")
    # Celery marks its processes so that multiprocessing refuses them children.
    config: dict[str, Any] = vars(current_process())["_config"]
    config["daemon"] = False
    statuses = []
    for number in range(children):
        streams.write(["parent", number])
        pid = os.fork() if number % 2 else None
        if pid is None:
            process = context.Process(target=_in_child, args=(streams, number))
            process.start()
            process.join(20)
            statuses.append(-1 if process.exitcode is None else process.exitcode)
        elif pid:
            statuses.append(os.waitpid(pid, 0)[1])
        else:
            status = 1
            try:
                _in_child(streams, number)
                status = 0
            finally:
                os._exit(status)
    stop.set()
    for thread in threads:
        thread.join()
    return statuses


@app.task(bind=True, base=ChatAgent, default_retry_delay=0)
def agent(self: Any, session_id: str, words: list[str], calls: tuple[str, ...] = ()) -> int:
    """Answer in the session; then do what a chat-agent task is warned of."""
    for word in words:
        self.chat.response.write({"type": "text-delta", "delta": word})
    for call in calls:
        match call:
            case "write":
                self.streams.write("x")
            case "writer":
                with self.streams.writer() as writer:
                    writer.write("x")
            case "pipe":
                assert list(self.streams.pipe(["x"])) == ["x"]
            case "append":
                self.streams.append("x")
            case "read":
                self.streams.append("x", key="read") if "append" in calls else None
                list(streams.read(self.request.id, timeout=0.01)) if "long" in calls else (
                    self.streams.read(self.request.id)
                )
            case "retry" if not self.request.retries:
                raise self.retry()
            case "subtask":
                count.delay(1)
    return self.streams.attempt


@app.task(base=ChatAgent, session_argument="chat_id")
def unbound_agent(chat_id: str, words: list[str]) -> str:
    """Every way of writing to the session, through the proxy."""
    first, *rest = words
    assert current_chat.stream.append(first) >= 0
    with current_chat.stream.writer() as writer:
        writer.write(rest[0])
    assert list(current_chat.stream.pipe(rest[1:2])) == rest[1:2]
    current_chat.stream.write(rest[2])
    current_chat.response.write(rest[3])
    return current_chat.session_id


@app.task(bind=True)
def outlives(self: Any, to: int, size: int) -> int:
    """Write large chunks as fast as the store takes them."""
    for number in range(to):
        self.streams.write([number, "x" * size])
    return to
