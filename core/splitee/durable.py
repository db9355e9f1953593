# SPDX-License-Identifier: Apache-2.0
"""Files that survive a power cut: written completely or not at all, and checked when they are read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from splitee.cli.systemd import slow_disk
from splitee.errors import StateError, StateInUse

log = logging.getLogger(__name__)

MAGIC = b"SPLITEE1"
HEADER = len(MAGIC) + hashlib.sha256().digest_size
UNFINISHED = ".new"  # suffix of temporary files' names
CLIENT_ID = ".client-id"
FACTS = "run.json"
_ROUND_FILE = re.compile(r"round-(\d+)\.(state|changes)")
KEPT_ROUNDS = 2  # committed rounds: the current and the one before


class Writable(Protocol):
    """A destination of content that is written piece by piece."""

    def write(self, data: bytes | memoryview, /) -> int: ...
    def flush(self) -> None: ...


Content = bytes | Callable[[Writable], object]  # of a file, or a function that writes it


class HashingWriter:
    """Computes a file's SHA-256 while it is written, so that large content is never in memory twice."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._failure: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> int:
        self._sha256.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self._failure = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def put(self, content: Content) -> bytes:
        """Write all of `content`; returns its SHA-256, 32 bytes.

        Raises:
            OSError: the file cannot be written, even if `content` raises another error then, as torch does.
        """
        if isinstance(content, bytes):
            self.write(content)
        else:
            try:
                content(self)
            except Exception:
                if self._failure is not None:
                    raise self._failure from None
                raise
        return self._sha256.digest()


def write_atomically(
    path: Path,
    data: bytes | Callable[[BinaryIO], object],
    *,
    mode: int | None = None,
    owner: tuple[int, int] | None = None,
    folder: int | None = None,
) -> None:
    """Write `data`, or what it writes, to `path` durably: temporary file, fsync, rename, fsync of the folder.

    Another account may own the folder. Therefore the temporary file is always a new one with an unpredictable
    name, and no link is followed.

    Args:
        mode: permissions of the file; None: as the umask leaves them.
        owner: user and group of the file; None: this process's.
        folder: a descriptor of the folder of `path`, if the caller has one.

    Raises:
        StateError: it cannot be written; what was at `path` is still there.
    """
    try:
        with slow_disk(), _opened(path.parent, folder) as inside:
            _replace(path.name, data, mode, owner, inside)
            os.fsync(inside)
    except OSError as error:
        raise unwritable(path, error) from None


def sync_folder(path: Path) -> None:
    """Make all creations, renames and removals in a folder durable. Raises OSError."""
    with _opened(path, None) as folder:
        os.fsync(folder)


@contextmanager
def _opened(path: Path, folder: int | None) -> Iterator[int]:
    if folder is not None:
        yield folder
        return
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


def _replace(
    name: str,
    data: bytes | Callable[[BinaryIO], object],
    mode: int | None,
    owner: tuple[int, int] | None,
    folder: int,
) -> None:
    """Replaces `name` with a new file; a failure leaves nothing behind."""
    temporary = f".{secrets.token_hex(8)}{UNFINISHED}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            if mode is not None:
                os.fchmod(descriptor, mode)
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def unwritable(path: Path, error: OSError) -> StateError:
    """The message about a file that could not be written because of `error`."""
    return StateError(f"cannot write {path}: {error.strerror}; free space or choose another directory")


def unreadable(path: Path, error: OSError) -> StateError:
    """The message about a file of a state that could not be read because of `error`."""
    return StateError(f"{path} cannot be read: {error.strerror}")


class StateDirectory:
    """One process's durable state: `run.json` and a checksummed file for each of the last rounds."""

    def __init__(self, path: Path) -> None:
        """Creates `path` and locks it for this process.

        Raises:
            StateError: it cannot be written.
            StateInUse: another process uses it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"state directory {path}: {error.strerror}; choose another directory") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StateInUse(f"state directory {path} is in use by another process; stop it first") from None
        try:
            self._tidy()
        except BaseException:
            self.close()  # otherwise this process would lock itself out of another attempt
            raise

    def _tidy(self) -> None:
        """Removes unfinished files of a killed process, and checks that there is room."""
        for unfinished in self.path.glob(f".*{UNFINISHED}"):
            _remove(unfinished)
        write_atomically(self.path / ".probe", b"")
        _remove(self.path / ".probe")

    def close(self) -> None:
        os.close(self._lock)

    def clear(self, *others: str) -> None:
        """Delete a run's facts and rounds, and the files `others`, but no file that people keep there."""
        for name in (FACTS, *others):
            _remove(self.path / name)
        for file in self.path.iterdir():
            if _ROUND_FILE.fullmatch(file.name):
                _remove(file)

    def client_token(self) -> str:
        """A hexadecimal token for client ids at the broker, which identifies this directory's process.

        It is the same for successive processes on this directory, so that the broker
        keeps no session of a killed one. Nobody else can guess it, so nobody can take over the session.
        """
        path = self.path / CLIENT_ID
        with suppress(OSError, UnicodeDecodeError):
            if re.fullmatch("[0-9a-f]{32}", token := path.read_text()):
                return token
        token = secrets.token_hex(16)
        write_atomically(path, token.encode(), mode=0o600)
        return token

    def save_facts(self, facts: dict[str, Any]) -> None:
        """Save `run.json`: what the state belongs to."""
        write_atomically(self.path / FACTS, json.dumps(facts, indent=1).encode())

    def facts(self) -> dict[str, Any] | None:
        """The facts that `save_facts` wrote; None if there are none, or the file is damaged."""
        try:
            facts = json.loads((self.path / FACTS).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("state: %s is unreadable (%s); it is ignored", self.path / FACTS, error)
            return None
        return facts if isinstance(facts, dict) else None

    def save_round(self, number: int, content: Content) -> str:
        """Save the state after round `number` durably; saved changes of an earlier version are deleted.

        Returns:
            The content's SHA-256, hexadecimal.
        """
        _remove(self.path / _changes_file(number))
        return self.save(_state_file(number), content)

    def load_round(self, number: int) -> bytes | None:
        """The state after round `number`; None, with a line in the log, if it is missing or damaged."""
        return self.load(_state_file(number))

    def save_changes(self, number: int, content: Content) -> None:
        """Save durably what has changed in the state after round `number` since it was saved."""
        self.save(_changes_file(number), content)

    def load_changes(self, number: int) -> bytes | None:
        """The changes that `save_changes` wrote; None: there are none, or they are damaged."""
        name = _changes_file(number)
        return self.load(name) if (self.path / name).exists() else None

    def save(self, name: str, content: Content) -> str:
        """Save a file with its checksum, durably; returns the checksum of `content`, hexadecimal."""
        digest = b""

        def write(file: BinaryIO) -> None:
            nonlocal digest
            file.seek(HEADER)
            digest = HashingWriter(file).put(content)
            file.seek(0)
            file.write(MAGIC + digest)

        write_atomically(self.path / name, write)
        return digest.hex()

    def load(self, name: str) -> bytes | None:
        """The content that `save` wrote; None, with a line in the log, if it is missing or damaged."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                header, content = file.read(HEADER), file.read()
        except OSError as error:
            log.warning("state: %s: %s", path, error.strerror)
            return None
        if header != MAGIC + hashlib.sha256(content).digest():
            log.warning("state: %s is torn; it is ignored", path)
            return None
        return content

    def rounds(self) -> list[int]:
        """The rounds that have files, the newest first."""
        names = (_ROUND_FILE.fullmatch(file.name) for file in self.path.iterdir())
        return sorted((int(name[1]) for name in names if name and name[2] == "state"), reverse=True)

    def prune(self, committed: int, keep: int = 0) -> None:
        """Delete rounds older than the one kept before `committed`, except the round `keep`."""
        older = [number for number in self.rounds() if number < committed]
        for number in older[KEPT_ROUNDS - 1 :]:
            if number != keep:
                _remove(self.path / _state_file(number))
                _remove(self.path / _changes_file(number))


def _remove(path: Path) -> None:
    """Removes a file, if it is there. Raises StateError: the disk does not let it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


def _state_file(number: int) -> str:
    return f"round-{number:06d}.state"


def _changes_file(number: int) -> str:
    return f"round-{number:06d}.changes"
