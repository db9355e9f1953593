"""The flags of a device that predicts: where its images come from, and how long one waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from splitee.cli.bounds import number
from splitee.cli.flags import option_group
from splitee.cli.input_options import region_setting
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.inference.predictor import NO_FLOORS, WINDOW, OffloadFloors
from splitee.inference.signatures import ReleaseKey
from splitee.samples.fitting import Region
from splitee_device.inference.folder import Folder
from splitee_device.inference.service import Camera, ImageSource


@dataclass(frozen=True)
class ServingOptions:
    """Where images come from, and how long one waits for the server's prediction."""

    watch: Path | None
    camera: bool
    every: float  # seconds between two images of the camera
    timeout: float  # seconds
    floors: OffloadFloors = NO_FLOORS
    key: ReleaseKey | None = None  # that releases must be signed by
    existing: bool = False  # images that lie in the watched folder at the start are classified, too
    region: Region | None = None  # of each picture that the network sees; None: as it was trained

    def images(self) -> ImageSource | None:
        """None: there are none to classify. Raises DataError: there is no such folder."""
        if self.watch is not None:
            return Folder(self.watch, existing=self.existing)
        return Camera(self.every) if self.camera else None


lowest_threshold = setting(
    "--lowest-threshold",
    type=number(0, 1),
    default=0.0,
    help="The threshold is never below it, whatever the model says.",
)
most_offload = setting(
    "--most-offload",
    type=number(0, 1),
    default=1.0,
    metavar="SHARE",
    help=f"Of any {WINDOW} images in a row, ask the server about no more than this share.",
)
_OPTIONS = (
    setting(
        "--watch",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Classify the images that come into it.",
    ),
    setting(
        "--existing",
        is_flag=True,
        help="And those that lie in the folder when the watching starts, at each start.",
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
    lowest_threshold,
    most_offload,
    setting(
        "--release-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take only releases that this key has signed: the release.pub of the device's bundle.",
    ),
    region_setting(
        help="The part of each picture, in its pixels, that the network sees.  [default: all of it; "
        "in infer: as it was trained]",
        show_default=False,
    ),
)


def _serving(
    watch: Path | None,
    existing: bool,
    camera: bool,
    every: float,
    timeout: float,
    lowest_threshold: float,
    most_offload: float,
    release_key: Path | None,
    region: Region | None,
) -> ServingOptions:
    if watch is not None and camera:
        raise ConfigError("give one of --watch FOLDER and --camera, not both")
    if existing and watch is None:
        raise ConfigError("--existing is of --watch FOLDER: give both, or none")
    key = ReleaseKey.read(release_key) if release_key is not None else None
    floors = OffloadFloors(lowest_threshold, most_offload)
    return ServingOptions(watch, camera, every, timeout, floors, key, existing, region)


serving_options = option_group("serving", _serving, *_OPTIONS)
"""Adds the flags; the command gets them as its argument `serving: ServingOptions`."""
