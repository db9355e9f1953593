# SPDX-License-Identifier: Apache-2.0
"""The camera, through the system's own program for it: one process, which delivers motion JPEG."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator

from splitee.errors import DataError
from splitee.log_limits import FirstFew
from splitee.mqtt.backoff import delays
from splitee_device.capture.backlog import NewImage
from splitee_device.capture.mjpeg import LARGEST, Splitter
from splitee_device.capture.pace import Pace
from splitee_device.capture.pipe import pieces

SILENCE = 20.0  # seconds without an image after which the program is considered hung
SETTLING = 1.0  # seconds after the first image in which exposure and white balance settle
SLOWEST, FASTEST = 5.0, 30.0  # images a second that are requested from a camera
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a program that has ended is started again
END_TIMEOUT = 2.0  # seconds in which it must end
NAME = "camera"
# Raspberry Pi OS's own, its older name, and any V4L2 webcam: to their standard output.
_PI = (
    *("--nopreview", "--timeout", "0", "--codec", "mjpeg", "--flush"),
    *("--framerate", "{rate:g}", "--output", "-"),
)
_WEBCAM = (
    *("-loglevel", "error", "-nostdin", "-f", "v4l2", "-i", "/dev/video0"),
    *("-r", "{rate:g}", "-q:v", "3", "-f", "mjpeg", "-"),
)
PROGRAMS: tuple[tuple[str, ...], ...] = (
    ("rpicam-vid", *_PI),
    ("libcamera-vid", *_PI),
    ("ffmpeg", *_WEBCAM),
)

log = logging.getLogger(__name__)


class Camera:
    """The camera's images at `pace`. A program that ends or hangs is restarted, at growing intervals."""

    def __init__(self, pace: Pace, rate: float = FASTEST, *, silence: float = SILENCE) -> None:
        """Args:
            rate: images a second.
            silence: seconds without an image after which the program is considered hung.

        Raises DataError: there is no program for the camera.
        """
        self._command = _command(rate)
        self._pace = pace
        self._silence = silence
        self._log_failed = FirstFew()

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Yields images until `stop` is set."""
        pauses = delays(FIRST_PAUSE, LONGEST_PAUSE, lambda _least, most: most)
        while not stop.is_set():
            try:
                for image in stream(self._command, stop, self._silence):
                    if self._pace.takes():
                        yield NewImage(NAME, image)
                        pauses = delays(FIRST_PAUSE, LONGEST_PAUSE, lambda _least, most: most)
            except DataError as error:
                pause = next(pauses)
                if self._log_failed.due():
                    log.warning("%s; next try in %.0f s", error, pause)
                stop.wait(pause)


def rate_for(every: float) -> float:
    """Images a second to request from a camera of which one in `every` seconds is wanted."""
    return FASTEST if not every else min(max(1 / every, SLOWEST), FASTEST)


def capture_image() -> bytes:
    """One JPEG. Raises DataError: there is no program for the camera, or it fails."""
    with contextlib.closing(stream(_command(FASTEST), threading.Event())) as images:
        return next(images)


def stream(command: tuple[str, ...], stop: threading.Event, silence: float = SILENCE) -> Generator[bytes]:
    """The JPEGs that a program writes to its standard output, from SETTLING after the first, until `stop`.

    Raises DataError: it cannot be started, has ended, or delivers nothing.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which ends the program
        )
    except OSError as error:
        raise DataError(f"{command[0]} does not start ({error.strerror}): check the camera") from None
    try:
        yield from _images(process, command[0], stop, silence)
    finally:
        _end(process)


def _images(
    process: subprocess.Popen[bytes], program: str, stop: threading.Event, silence: float
) -> Iterator[bytes]:
    assert process.stdout is not None and process.stderr is not None
    output, errors = process.stdout.fileno(), process.stderr.fileno()
    splitter, words = Splitter(), b""
    last_image = time.monotonic()
    settled: float | None = None
    for file, piece in pieces((output, errors), stop):
        now = time.monotonic()
        if file == errors:
            words = (words + piece)[-4096:]
        elif file == output:
            images = splitter.feed(piece)
            if images:
                settled = settled or now + SETTLING
                if now >= settled:
                    yield from images
                now = last_image = time.monotonic()  # the consumer of the images may have no room for a while
        if now - last_image > silence:
            what = f"nothing that is an image of up to {LARGEST >> 20} MiB" if splitter.broken else "no image"
            raise DataError(f"{program} delivers {what} for {silence:.0f} s: check the camera")
    if not stop.is_set():
        raise DataError(f"{program} has ended ({_reason(process, words)}): check the camera")


def _reason(process: subprocess.Popen[bytes], words: bytes) -> str:
    """The last line that the program wrote, or its exit status."""
    lines = [line for line in re.split(r"[\r\n]+", words.decode(errors="replace")) if line.strip()]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT)
    return lines[-1].strip()[-300:] if lines else f"status {process.returncode}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and its descendants, even if some ignore SIGTERM or outlive it."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _command(rate: float) -> tuple[str, ...]:
    """Raises DataError: there is no program for the camera."""
    command = next((command for command in PROGRAMS if shutil.which(command[0])), None)
    if command is None:
        names = ", ".join(command[0] for command in PROGRAMS)
        raise DataError(f"no program for the camera: expected one of {names} on PATH; install one")
    return tuple(word.format(rate=rate) for word in command)
