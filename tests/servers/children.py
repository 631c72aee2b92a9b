"""Child processes that cannot outlive the test run."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_PR_SET_PDEATHSIG = 1
_LINUX = sys.platform.startswith("linux")
_prctl = ctypes.CDLL(None).prctl if _LINUX else None
# The kernel delivers the parent-death signal when the *thread* that forked ends, so all
# children are started from one thread that lives as long as this process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that is killed when this process dies, however it dies."""
    if _LINUX:
        options.setdefault("preexec_fn", _die_with_parent)
    return _spawner.submit(lambda: subprocess.Popen(command, **options)).result()


def _die_with_parent() -> None:
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], *, patience: float = 10.0) -> int:
    """SIGTERM, then SIGKILL for one that does not listen; returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)  # a stopped process cannot hear SIGTERM
        process.terminate()
        try:
            return process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_port() -> int:
    """A port nobody listens on, with room above it for a cluster bus (port + 10000)."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if port < 55_000:
            return port


def eventually(
    true: Callable[[], object], what: str, *, timeout: float = 20.0, every: float = 0.01
) -> None:
    """Wait until ``true()`` is; for states of other processes that announce no event."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(every)
