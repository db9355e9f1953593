"""The flags of a device that predicts: where its images come from, and how long one waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from splitee.cli.bounds import number
from splitee.cli.flags import option_group
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee_device.inference.service import Camera, Folder, ImageSource


@dataclass(frozen=True)
class ServingOptions:
    """Where images come from, and how long one waits for the server's prediction."""

    watch: Path | None
    camera: bool
    every: float  # seconds between two images of the camera
    timeout: float  # seconds

    def images(self) -> ImageSource | None:
        """None: there are none to classify. Raises DataError: there is no such folder."""
        if self.watch is not None:
            return Folder(self.watch)
        return Camera(self.every) if self.camera else None


_OPTIONS = (
    setting(
        "--watch",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Classify the images that come into it.",
    ),
    setting("--camera", is_flag=True, help="Classify what this device's camera sees."),
    setting(
        "--every",
        type=number(0, above=True),
        default=10.0,
        metavar="SECONDS",
        help="Between two images of the camera.",
    ),
    setting(
        "--timeout",
        type=number(0, above=True),
        default=2.0,
        metavar="SECONDS",
        help="How long an image waits for the server; then the exit's prediction is taken.",
    ),
)


def _serving(watch: Path | None, camera: bool, every: float, timeout: float) -> ServingOptions:
    if watch is not None and camera:
        raise ConfigError("give one of --watch FOLDER and --camera, not both")
    return ServingOptions(watch, camera, every, timeout)


serving_options = option_group("serving", _serving, *_OPTIONS)
"""Adds the flags; the command gets them as its argument `serving: ServingOptions`."""
