"""The flags of a device that classifies images: one decorator, one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

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
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        metavar="SECONDS",
        help="Between two images of the camera.",
    ),
    setting(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=2.0,
        metavar="SECONDS",
        help="How long an image waits for the server; then the exit's prediction is taken.",
    ),
)
_NAMES = ("watch", "camera", "every", "timeout")


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags; the command gets them as its argument `serving: ServingOptions`."""

    @functools.wraps(command)
    def with_serving(**arguments: Any) -> Any:
        given = ServingOptions(**{name: arguments.pop(name) for name in _NAMES})
        if given.watch is not None and given.camera:
            raise ConfigError("give one of --watch FOLDER and --camera, not both")
        return command(serving=given, **arguments)

    for option in reversed(_OPTIONS):
        with_serving = option(with_serving)
    return with_serving
