# SPDX-License-Identifier: Apache-2.0
"""The camera with real programs in place of the system's: they deliver, fail, hang, and are stopped."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from waiting import LONG, until

from splitee.errors import DataError
from splitee_device.capture.backlog import Backlog
from splitee_device.capture.camera import Camera, capture_image, rate_for
from splitee_device.capture.mjpeg import LARGEST
from splitee_device.capture.pace import Pace

FILE = io.BytesIO()
Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(FILE, "JPEG")
IMAGE = FILE.getvalue()
HEAD = f"""#!{sys.executable}
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
with (folder / "started").open("a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
image = (folder / "image.jpg").read_bytes()
def deliver(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.write(1, image)
        time.sleep(0.02)
"""
Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`program(code, name)`: installs the only program of the system, for its camera; returns its folder."""

    def write(code: str, name: str = "rpicam-vid") -> Path:
        (tmp_path / "image.jpg").write_bytes(IMAGE)
        (tmp_path / name).write_text(HEAD + code)
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    return write


def started(folder: Path) -> list[list[str]]:
    """Process number and arguments of each start."""
    file = folder / "started"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


Open = Callable[[Camera], Backlog]


@pytest.fixture
def opened() -> Iterator[Open]:
    """`opened(camera)`: the images that it delivers."""
    backlogs: list[Backlog] = []

    def open_it(camera: Camera) -> Backlog:
        backlogs.append(Backlog(camera, 8))
        backlogs[-1].open(lambda: None)
        return backlogs[-1]

    yield open_it
    for backlog in backlogs:
        backlog.close()


def test_camera_program_delivers_images_until_the_backlog_is_closed(program: Program, opened: Open) -> None:
    folder = program("deliver(60)")
    backlog = opened(Camera(Pace(0.2), rate_for(0.2)))
    images: list[bytes | Path] = []
    until(lambda: images.extend(image.source for image in backlog.take(8)) or len(images) >= 5)
    assert set(images) == {IMAGE}
    ((number, *arguments),) = started(folder)
    assert "mjpeg" in arguments
    assert arguments[arguments.index("--framerate") + 1] == "5"
    backlog.close()
    until(lambda: not Path(f"/proc/{number}").exists())


def test_camera_images_that_are_not_taken_are_dropped(program: Program, opened: Open) -> None:
    program("deliver(60)")
    backlog = opened(Camera(Pace(0.0)))
    until(lambda: backlog.dropped > 20)
    assert backlog.waiting <= 8


def test_failed_camera_program_is_restarted_with_one_log_line(
    program: Program, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    folder = program(
        "deliver(1.5)\nsys.stderr.write('frame 1\\rERROR: Device timeout detected\\n')\nsys.exit(255)"
    )
    backlog = opened(Camera(Pace(0.0)))
    until(lambda: len(started(folder)) == 2)
    assert backlog.take(8)
    assert [record.getMessage() for record in caplog.records] == [
        "rpicam-vid has ended (ERROR: Device timeout detected): check the camera; next try in 1 s"
    ]


def test_hanging_camera_program_is_stopped_and_logged(
    program: Program, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    folder = program("deliver(1.2)\ntime.sleep(600)")
    opened(Camera(Pace(0.0), silence=1.0))
    until(lambda: caplog.records)
    assert caplog.records[0].getMessage().startswith("rpicam-vid delivers no image for 1 s: check the camera")
    until(lambda: not Path(f"/proc/{started(folder)[0][0]}").exists())


def test_camera_program_without_a_consumer_does_not_count_as_hanging(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    comments = r"4 * (b'\xff\xfe\xff\xff' + bytes(65533))"  # more than a pipe holds
    folder = program(f"image = image[:2] + {comments} + image[2:]\nwhile True: os.write(1, image)")
    backlog = Backlog(Camera(Pace(0.0), silence=1.0), 1, drops=False)
    woken = threading.Event()
    backlog.open(woken.set)
    assert woken.wait(LONG)
    time.sleep(1.5)  # longer than the program may be silent for
    taken: list[object] = []
    until(lambda: taken.extend(backlog.take(1)) or len(taken) == 20)
    backlog.close()
    assert len(started(folder)) == 1 and caplog.messages == []


def test_camera_image_without_an_end_is_skipped(program: Program, opened: Open) -> None:
    program(
        "deliver(1.2)\nos.write(1, image[:-2])\n"
        f"for _ in range({12 * LARGEST >> 16}): os.write(1, bytes(1 << 16))\ndeliver(60)"
    )
    backlog = opened(Camera(Pace(0.0)))
    until(lambda: backlog.take(8))
    until(lambda: not backlog.take(8))
    until(lambda: backlog.take(8))


def test_missing_camera_program_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no program for the camera: expected one of rpicam-vid"):
        Camera(Pace(0.0))
    with pytest.raises(DataError, match="no program for the camera"):
        capture_image()


def test_webcam_is_read_by_ffmpeg(program: Program) -> None:
    folder = program("deliver(60)", "ffmpeg")
    assert capture_image() == IMAGE
    ((number, *arguments),) = started(folder)
    assert arguments[arguments.index("-i") + 1] == "/dev/video0"
    assert not Path(f"/proc/{number}").exists()


@pytest.mark.parametrize(("every", "rate"), [(0, 30), (0.1, 10), (0.01, 30), (10, 5), (3600, 5)])
def test_camera_frame_rate_follows_from_the_interval(every: float, rate: float) -> None:
    assert rate_for(every) == rate


def test_child_of_a_camera_program_is_killed_even_if_it_ignores_sigterm(
    program: Program, opened: Open
) -> None:
    folder = program(
        "import signal, subprocess\nignores = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['/bin/sleep', '600'], preexec_fn=ignores)\n"
        "(folder / 'child').write_text(str(child.pid))\ndeliver(60)"
    )
    backlog = opened(Camera(Pace(0.0)))
    until(lambda: backlog.take(8))
    child = int((folder / "child").read_text())
    backlog.close()

    def is_gone() -> bool:
        try:
            return os.waitpid(child, os.WNOHANG) != (0, 0)
        except ChildProcessError:  # not a child of this process: it is gone, or a zombie
            state = Path(f"/proc/{child}/stat")
            return not state.exists() or state.read_text().split()[2] == "Z"

    until(is_gone)
