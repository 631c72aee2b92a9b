"""Whole set-ups through pytest-celery's interfaces: they work, and again after a restart."""

from __future__ import annotations

import pytest
from pytest_celery import CeleryTestSetup

from celery_streams import Streams


def _add(setup: CeleryTestSetup, x: int, y: int, module: str = "plain_app") -> int:
    task = setup.app.send_task(f"tests.apps.{module}.add", (x, y), queue="celery")
    result: int = task.get(timeout=40)
    return result


def test_a_set_up_of_three_nodes_is_ready_and_runs_a_task(celery_setup: CeleryTestSetup) -> None:
    """Broker, backend and worker nodes start, the worker answers control and tasks."""
    assert len(celery_setup) == 3
    assert celery_setup.ready(control=True)
    assert _add(celery_setup, 1, 2) == 3


@pytest.mark.parametrize("force", [False, True], ids=["in order", "by SIGTERM first"])
def test_a_worker_node_works_after_a_restart(celery_setup: CeleryTestSetup, force: bool) -> None:
    """The queue outlives the worker: a task sent afterwards is run by its successor."""
    assert _add(celery_setup, 1, 2) == 3
    celery_setup.worker.restart(force=force)
    assert _add(celery_setup, 2, 3) == 5
    celery_setup.worker.assert_log_exists("ready.")


def test_a_killed_worker_node_is_brought_back(celery_setup: CeleryTestSetup) -> None:
    """SIGKILL, then restart: a task that was queued meanwhile is run."""
    celery_setup.worker.kill()
    waiting = celery_setup.app.send_task("tests.apps.plain_app.add", (3, 4), queue="celery")
    celery_setup.worker.restart()
    assert waiting.get(timeout=40) == 7


def test_a_worker_node_finds_its_restarted_broker(celery_setup: CeleryTestSetup) -> None:
    """The broker goes away and comes back under the worker, which takes tasks again."""
    assert _add(celery_setup, 1, 2) == 3
    celery_setup.broker.restart()
    assert _add(celery_setup, 2, 3) == 5


class TestStreaming:
    """The same set-up, with an app that streams."""

    @pytest.fixture
    def smoke_module(self) -> str:
        """The app that streams."""
        return "tests.apps.smoke_app"

    def _read_all(self, setup: CeleryTestSetup, numbers: int) -> None:
        backend = setup.backend.config()["host_url"]
        url = backend if setup.backend.container.name != "backend" else backend.rsplit("/", 1)[0]
        streams = Streams(url=url, secret="test secret")
        task = setup.app.send_task("tests.apps.smoke_app.count", (numbers,), queue="celery")
        assert list(streams.read(task.id, timeout=40)) == list(range(numbers))
        assert list(streams.read(task.id, key="progress", timeout=40)) == [{"done": numbers}]
        assert task.get(timeout=40) == numbers

    def test_a_streaming_task_is_read_from_outside(self, celery_setup: CeleryTestSetup) -> None:
        """Every chunk in order, then the end, on both streams of the run."""
        self._read_all(celery_setup, 100)

    def test_streams_work_after_worker_and_store_restart(
        self, celery_setup: CeleryTestSetup
    ) -> None:
        """Nothing in worker or reader outlives the restart of what it talks to."""
        self._read_all(celery_setup, 10)
        celery_setup.worker.restart()
        celery_setup.backend.restart()
        self._read_all(celery_setup, 10)
