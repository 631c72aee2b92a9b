"""The servers that are compared: how each is started, and what the kernel says about it."""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent.parent
_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1

GATEWAY, NODE, RAKAIA = "gateway", "Node", "rakaia"
#: No server of the protocol: the least that delivering costs in Python.
BARE = "bare"


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs. CPU and memory are the process's own: none of them has children."""

    name: str
    pid: int
    port: int

    def cpu(self) -> float:
        """Seconds of CPU it has used so far, in user and in kernel mode."""
        return cpu_of(self.pid)

    def rss_mib(self) -> float:
        """What it holds in memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{self.name} has ended")

    def local_ports(self) -> set[int]:
        """The local ports of its TCP connections."""
        inodes = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports


def cpu_of(pid: int) -> float:
    """Seconds of CPU a process has used so far (``utime`` and ``stime``)."""
    # The name, in parentheses, may have blanks in it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def cpu_of_all() -> float:
    """Seconds of CPU that this machine has used so far, whoever for."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + irq + softirq) / _TICK


def why_not(name: str) -> str | None:
    """Why a server cannot be measured here; ``None`` if it can."""
    if name == NODE:
        if shutil.which("node") is None:
            return "node is not installed"
        if not (_HERE / "node_modules" / "@durable-streams" / "server").is_dir():
            return "npm install has not been run (make bench-gateway does)"
        return None
    if find_spec("uvicorn") is None:
        return "uvicorn is not installed (make bench-gateway does that)"
    if name == BARE:
        return None
    if name == RAKAIA:
        return None if find_spec("rakaia") else "rakaia-streams is not installed"
    if find_spec("celery_streams.gateway") is None:
        return "celery_streams.gateway does not exist"
    return None


@contextmanager
def serving(name: str, redis_url: str) -> Iterator[Server]:
    """Start the server on a free port, in memory or on Redis, and end it afterwards."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(name, port),
            cwd=_ROOT,
            env={**os.environ, "BENCHMARKS_URL": redis_url, "NODE_ENV": "production"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - the child only calls prctl
        )
        try:
            _wait(lambda: _answers(port) or process.poll() is not None)
            if process.poll() is not None or not _answers(port):
                raise RuntimeError(f"{name} does not start")
            yield Server(name, process.pid, port)
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            _end(process)


def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One HTTP request: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _command(name: str, port: int) -> list[str]:
    if name == NODE:
        return ["node", str(_HERE / "reference.mjs"), str(port)]
    if name == GATEWAY:
        return [sys.executable, "-m", "benchmarks.gateway.app", str(port)]
    if name == BARE:
        return [sys.executable, "-m", "benchmarks.gateway.bare", str(port)]
    return [
        sys.executable, "-W", "ignore", "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "warning", "--no-access-log", "--backlog", "4096",
        "--timeout-graceful-shutdown", "1", "--timeout-keep-alive", "60", "rakaia:app",
    ]  # fmt: skip


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(true: Callable[[], bool], *, patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
