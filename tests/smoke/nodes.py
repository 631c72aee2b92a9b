"""pytest-celery's containers as local processes, for machines without a Docker engine.

pytest-celery's nodes, clusters and set-ups talk to a container through a few methods (status,
logs, kill, restart, reload, ready). These classes give them the same methods on a process, so a
smoke test cannot tell where its nodes run.
"""

from __future__ import annotations

import gc
import signal as signals
import uuid
import warnings
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

from pytest_celery import CeleryTestContainer

from tests.servers import ValkeyProcess
from tests.servers.children import end
from tests.workers import BROKER_DB, RESULT_DB, Worker


@cache
def docker_answers() -> bool:
    """Whether a Docker engine is there to run containers."""
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its failed connections stay unclosed
        try:
            client = docker.from_env(timeout=5)
            answered = bool(client.ping())
            client.close()
        except Exception:  # requests' and docker's own errors alike mean: no
            answered = False
        gc.collect()
    return answered


class ProcessContainer(CeleryTestContainer, ABC):
    """What all local containers share."""

    def __init__(self, name: str) -> None:
        # Not the base class's: there is no container object to wrap.
        self._name = name
        self._id = uuid.uuid4().hex

    @property
    def name(self) -> str:
        return self._name

    @property
    def id(self) -> str:
        return self._id

    @property
    def status(self) -> str:
        process = self._process()
        return "running" if process is not None and process.poll() is None else "exited"

    def reload(self) -> None:
        """A process's state needs no fetching."""

    def ready(self) -> bool:
        return self.status == "running" and (self.ready_prompt or "") in self.logs()

    def kill(self, signal: str | int = "SIGKILL") -> None:
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)
        process = self._process()
        if number == signals.SIGTERM:
            end(process)
        else:
            process.send_signal(number)
            process.wait()

    @abstractmethod
    def restart(self, timeout: int = 60) -> None:
        """End the process, if it runs, and start it again."""

    @abstractmethod
    def _process(self) -> Any:
        """The process that stands for the container."""


class ValkeyContainer(ProcessContainer):
    """A broker or result backend: a Valkey with its append-only file."""

    def __init__(self, name: str, db: int) -> None:
        super().__init__(name)
        self._db = db
        self.server = ValkeyProcess(aof=True)
        self.server.__enter__()

    @property
    def celeryconfig(self) -> dict[str, Any]:
        url = self.server.url_for(db=self._db)
        return {
            "url": url,
            "host_url": url,
            "hostname": "127.0.0.1",
            "port": self.server.port,
            "vhost": str(self._db),
        }

    @property
    def client(self) -> Any:
        return self.server.client()

    @property
    def ready_prompt(self) -> str:
        return "Ready to accept connections"

    def logs(self) -> str:
        return self.server.log

    def restart(self, timeout: int = 60) -> None:
        self.server.restart()

    def teardown(self) -> None:
        self.server.__exit__()

    def _process(self) -> Any:
        return self.server.process


class WorkerContainer(ProcessContainer):
    """A Celery worker."""

    def __init__(self, module: str, broker: ValkeyContainer, backend: ValkeyContainer) -> None:
        super().__init__("worker")
        self.worker = Worker(
            module=module,
            broker_url=broker.celeryconfig["url"],
            result_backend=backend.celeryconfig["url"],
            streams_url=backend.server.url,
        )
        self._earlier_logs = ""
        self.worker.__enter__()

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    @property
    def ready_prompt(self) -> str:
        return "ready."

    def worker_name(self) -> str:
        return self.worker.name

    def worker_queue(self) -> str:
        return self.worker.queue

    def version(self) -> str:
        import celery

        return str(celery.__version__)

    def logs(self) -> str:
        return self._earlier_logs + self.worker.log.text

    def kill(self, signal: str | int = "SIGKILL") -> None:
        if signal in ("SIGKILL", signals.SIGKILL):
            self.worker.kill()  # as in a container, the pool dies with it
        else:
            super().kill(signal)

    def restart(self, timeout: int = 60) -> None:
        self.worker.stop(patience=timeout)
        self._earlier_logs = self.logs()
        self.worker.start()

    def teardown(self) -> None:
        self.worker.__exit__()

    def _process(self) -> Any:
        return self.worker.process


def broker_container() -> ValkeyContainer:
    return ValkeyContainer("broker", BROKER_DB)


def backend_container() -> ValkeyContainer:
    return ValkeyContainer("backend", RESULT_DB)
