"""pytest-celery's fixtures, answered by containers where Docker is, else by processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerContainer,
)
from pytest_docker_tools import build, container, fxtr, volume

from tests.smoke.nodes import WorkerContainer, backend_container, broker_container, docker_answers
from tests.workers import ROOT

_SOURCES = ("tests/__init__.py", "tests/apps")


@pytest.fixture
def smoke_module() -> str:
    """The app module that the worker node runs; override it to run another."""
    return "tests.apps.plain_app"


@pytest.fixture
def celery_broker(request: pytest.FixtureRequest) -> Iterator[CeleryTestBroker]:
    """The broker node."""
    if docker_answers():
        node = request.getfixturevalue("celery_redis_broker")
    else:
        node = CeleryTestBroker(broker_container())
    yield node
    node.teardown()


@pytest.fixture
def celery_backend(request: pytest.FixtureRequest) -> Iterator[CeleryTestBackend]:
    """The result backend node, which also holds the streams."""
    if docker_answers():
        node = request.getfixturevalue("celery_redis_backend")
    else:
        node = CeleryTestBackend(backend_container())
    yield node
    node.teardown()


@pytest.fixture
def celery_worker(
    request: pytest.FixtureRequest,
    smoke_module: str,
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
    celery_setup_app: Celery,
) -> Iterator[CeleryTestWorker]:
    """The worker node."""
    if docker_answers():
        local = request.getfixturevalue("smoke_worker_container")
    else:
        local = WorkerContainer(
            smoke_module, celery_broker_cluster[0].container, celery_backend_cluster[0].container
        )
    node = CeleryTestWorker(local, celery_setup_app)
    yield node
    node.teardown()


@pytest.fixture
def celery_setup_app(celery_setup_app: Celery) -> Iterator[Celery]:
    """pytest-celery's app, with its connections closed at the end."""
    yield celery_setup_app
    celery_setup_app.close()


# -- with a Docker engine: the project's own image, with the test apps mounted ----------------


class SmokeWorkerContainer(CeleryWorkerContainer):
    """A worker from the project's Dockerfile."""

    @classmethod
    def worker_queue(cls) -> str:
        return "celery"


smoke_worker_image = build(path=str(ROOT), tag="celery-streams/smoke:latest")
smoke_worker_volume = volume(initial_content=fxtr("smoke_worker_content"))
smoke_worker_container = container(
    image="{smoke_worker_image.id}",
    environment=fxtr("smoke_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{smoke_worker_volume.name}": {"bind": "/smoke", "mode": "ro"}},
    wrapper_class=SmokeWorkerContainer,
    timeout=60,
    command=fxtr("smoke_worker_command"),
)


@pytest.fixture
def smoke_worker_content() -> dict[str, bytes]:
    """The files of the test apps, as the volume takes them."""
    found: list[Path] = []
    for source in _SOURCES:
        path = ROOT / source
        found += path.glob("*.py") if path.is_dir() else [path]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in found}


@pytest.fixture
def smoke_worker_env(celery_worker_cluster_config: dict[str, Any]) -> dict[str, str]:
    """Where the worker in a container finds the others."""
    broker = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0]
    backend = celery_worker_cluster_config["celery_backend_cluster_config"]["urls"][0]
    return {
        "PYTHONPATH": "/smoke",
        "TEST_BROKER_URL": broker,
        "TEST_RESULT_BACKEND": backend,
        "CELERY_STREAMS_URL": backend,
        "CELERY_STREAMS_SECRET": "test secret",
    }


@pytest.fixture
def smoke_worker_command(smoke_module: str) -> list[str]:
    """The container's command."""
    return ["celery", "-A", smoke_module, "worker", "--loglevel", "INFO", "--concurrency", "2"]
