# SPDX-License-Identifier: Apache-2.0
"""The flags of a device that predicts: the source of its images, and how long it waits for the server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import number, whole
from splitee.cli.flags import option_group
from splitee.cli.input_options import region_setting
from splitee.cli.pairs import require
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.inference.predictor import NO_LIMITS, WINDOW, OffloadLimits
from splitee.inference.signatures import ReleaseKey
from splitee.samples.fitting import Region
from splitee_device.capture.options import CAPTURE_SETTINGS, CaptureOptions, capture_options
from splitee_device.inference.unsure_images import Bounds, UnsureImages

KEEP = Bounds()


@dataclass(frozen=True)
class ServingOptions:
    """The source of images, and how long an image waits for the server's prediction."""

    capture: CaptureOptions
    timeout: float  # seconds
    offload_limits: OffloadLimits = NO_LIMITS
    key: ReleaseKey | None = None  # that must have signed releases
    software_key: ReleaseKey | None = None  # that must have signed software; None: no software is accepted
    region: Region | None = None  # the part of each image that the network sees; None: as it was trained
    keep_unsure: Path | None = None  # folder for images that the model is uncertain of; None: nowhere
    keep: Bounds = KEEP

    def unsure_images(self) -> UnsureImages | None:
        """None: none are kept."""
        return None if self.keep_unsure is None else UnsureImages(self.keep_unsure, self.keep)


lowest_threshold = setting(
    "--lowest-threshold",
    type=number(0, 1),
    default=0.0,
    metavar="ENTROPY",
    help="Lowest threshold that a model may set, as normalised entropy.",
)
most_offload = setting(
    "--most-offload",
    type=number(0, 1),
    default=1.0,
    metavar="SHARE",
    help=f"Largest share of any {WINDOW} images in a row that may be offloaded to the server.",
)
_OPTIONS = (
    *CAPTURE_SETTINGS,
    setting(
        "--timeout",
        type=number(0, above=True),
        default=2.0,
        metavar="SECONDS",
        help="How long an offloaded image waits for the server, in seconds; then the exit's prediction is "
        "taken.",
    ),
    lowest_threshold,
    most_offload,
    setting(
        "--keep-unsure",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder in which images that the model is uncertain of are kept for `splitee label`.",
        show_default="none are kept",
    ),
    setting(
        "--keep-count",
        type=whole(1),
        default=KEEP.count,
        metavar="COUNT",
        help="Largest number of images in --keep-unsure; the oldest are deleted first.",
    ),
    setting(
        "--keep-size",
        type=whole(1),
        default=KEEP.size >> 20,
        metavar="MIB",
        help="Largest total size of the images in --keep-unsure.",
    ),
    setting(
        "--keep-every",
        type=number(1),
        default=KEEP.every,
        metavar="SECONDS",
        help="Period, in seconds, of which only the most uncertain image is kept.",
    ),
    setting(
        "--keep-above",
        type=number(0, 1),
        metavar="ENTROPY",
        help="Normalised entropy above which an image is kept.",
        show_default="the threshold in force",
    ),
    setting(
        "--release-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Public key that releases must be signed by: the release.pub of the device's bundle.",
        show_default="none, unsigned releases are accepted",
    ),
    setting(
        "--software-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Public key that new software must be signed by: the software.pub of the device's bundle.",
        show_default="none, no software is accepted",
    ),
    region_setting(
        help="Part of each image that the network sees, in its pixels: left, top, width, height.",
        show_default="all of it; in infer: as it was trained",
    ),
)


def _serving(
    timeout: float,
    lowest_threshold: float,
    most_offload: float,
    keep_unsure: Path | None,
    keep_count: int,
    keep_size: int,
    keep_every: float,
    keep_above: float | None,
    release_key: Path | None,
    software_key: Path | None,
    region: Region | None,
    **where: Any,
) -> ServingOptions:
    capture = capture_options(**where)
    require("--watch, --camera or --stdin", capture.is_given, "--keep-unsure")
    watch = capture.watch
    if keep_unsure is not None and watch is not None and keep_unsure.resolve() == watch.resolve():
        raise ConfigError(
            "--keep-unsure and --watch are the same folder: what is kept would be classified again"
        )
    bounds = ("--keep-count", "--keep-size", "--keep-every", "--keep-above")
    require("--keep-unsure", keep_unsure is not None, *bounds)
    key = ReleaseKey.read(release_key) if release_key is not None else None
    of_software = ReleaseKey.read(software_key, "software") if software_key is not None else None
    offload_limits = OffloadLimits(lowest_threshold, most_offload)
    keep = Bounds(keep_count, keep_size << 20, keep_every, keep_above)
    return ServingOptions(capture, timeout, offload_limits, key, of_software, region, keep_unsure, keep)


serving_options = option_group("serving", _serving, *_OPTIONS, title="Classification")
"""Adds the flags; the command gets them as its argument `serving: ServingOptions`."""
