"""The files by which processes agree on one server per directory."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from celery_streams.errors import ConfigurationError

_LARGE_LOG = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Directory:
    """One embedded server's home.

    ``resolve.lock`` is held (shared) by a process that looks the server up, (exclusively) by
    one that starts it and by the supervisor that stops it: nobody is handed the address of a
    server about to stop. ``server.lock`` is held by the supervisor and, through an inherited
    descriptor, by the server itself, so two servers never write the same data.
    """

    path: Path

    @classmethod
    def of(cls, url: str) -> Directory:
        """The directory an ``embedded://`` URL names, created if need be.

        Raises:
            ConfigurationError: the directory cannot be used; says why.
        """
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            raise ConfigurationError(
                f"{url!r}: an embedded:// URL takes a directory and nothing else"
            )
        given = unquote(parts.netloc + parts.path)
        path = Path(given).expanduser().absolute() if given.strip("/") else _of_this_user()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(path)
        except OSError as error:
            raise ConfigurationError(
                f"{url!r}: cannot use the directory {path} ({error}); name one that this "
                "process may write, as in embedded:///var/lib/myproject"
            ) from error
        return cls(path)

    @property
    def log(self) -> Path:
        """What supervisor and server have to say."""
        return self.path / "server.log"

    def open_log(self) -> IO[bytes]:
        """The log, to append to; begun anew when it has grown large."""
        large = self.log.exists() and self.log.stat().st_size > _LARGE_LOG
        return self.log.open("wb" if large else "ab")

    @property
    def address(self) -> str | None:
        """The URL that the last server was started under. It may be dead."""
        try:
            return (self.path / "address").read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def publish(self, url: str) -> None:
        """Replace the address. It holds a password: only the owner can read it."""
        descriptor, name = tempfile.mkstemp(dir=self.path, prefix="address.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(url + "\n")
            Path(name).replace(self.path / "address")
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    @contextmanager
    def resolving(self, *, exclusive: bool) -> Iterator[None]:
        """Hold ``resolve.lock``; waits for it."""
        with self._open("resolve.lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield

    @contextmanager
    def serving(self) -> Iterator[int | None]:
        """Hold ``server.lock`` if it is free: yields its descriptor, for the server to share."""
        with self._open("server.lock") as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            # Unlocked, not only closed: a child forked meanwhile has a copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _of_this_user() -> Path:
    return Path(tempfile.gettempdir()) / f"celery-streams-{os.getuid()}"


def _check_owner(path: Path) -> None:
    """Refuse a directory in which somebody else could plant an address or read ours."""
    status = path.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"it belongs to the user id {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("other users may write to it")
