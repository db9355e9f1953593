# SPDX-License-Identifier: Apache-2.0
"""One image from the camera, through the program that the system has for it."""

from __future__ import annotations

import shutil
import subprocess

from splitee.errors import DataError

TIMEOUT = 20.0  # seconds
# Each writes one JPEG to its standard output: Raspberry Pi OS's own, its older name, and any V4L2 webcam.
PROGRAMS: tuple[tuple[str, ...], ...] = (
    ("rpicam-still", "--nopreview", "--immediate", "--encoding", "jpg", "--output", "-"),
    ("libcamera-still", "--nopreview", "--immediate", "--encoding", "jpg", "--output", "-"),
    ("ffmpeg", "-loglevel", "error", "-f", "v4l2", "-i", "/dev/video0", "-frames:v", "1", "-f", "mjpeg", "-"),
)


def capture_image() -> bytes:
    """A JPEG. Raises DataError: there is no program for the camera, or it fails."""
    command = next((command for command in PROGRAMS if shutil.which(command[0])), None)
    if command is None:
        names = ", ".join(command[0] for command in PROGRAMS)
        raise DataError(f"no program for the camera: expected one of {names} on PATH; install one")
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} took no image within {TIMEOUT:.0f} s: check the camera") from None
    if done.returncode or not done.stdout:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        reason = words[-1] if words else f"status {done.returncode}"
        raise DataError(f"{command[0]} took no image ({reason}): check the camera")
    return done.stdout
