# SPDX-License-Identifier: Apache-2.0
"""`splitee predict`: classifies images with an exported model, without torch; offloads uncertain ones."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from splitee.cli.bounds import MOST_THREADS, number, whole
from splitee.cli.command import Command, section
from splitee.cli.input_options import region_setting
from splitee.cli.link_options import optional_link_options
from splitee.cli.pairs import require
from splitee.cli.plain_text import echo, echo_json
from splitee.cli.settings import setting, settings_file
from splitee.cli.verbosity import is_quiet, log_options
from splitee.errors import ConfigError, DataError
from splitee.inference.graphs import ClientModel
from splitee.inference.predictor import OffloadLimits, Prediction, Predictor
from splitee.mqtt.options import LinkOptions
from splitee.samples.fitting import Pixels, Preparation, Region
from splitee.samples.images import IMAGE_SUFFIXES, UnreadableImage, load_image
from splitee.samples.storage import load_region
from splitee_device.inference.find_model import find_model
from splitee_device.inference.options import lowest_threshold, most_offload
from splitee_device.inference.tally import Tally, class_of

if TYPE_CHECKING:
    from splitee.inference.offload import Offload

log = logging.getLogger(__name__)

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@settings_file
@log_options()
@click.argument("images", nargs=-1, type=PATH)
@section(
    "Images and model",
    setting(
        "--model",
        type=PATH,
        required=True,
        metavar="DIR",
        help="Model that `splitee export` wrote for a device, or a device's state: its model in service.",
    ),
    setting("--camera", is_flag=True, help="Take one image with this device's camera."),
    region_setting(
        help="Part of each image that the network sees, in its pixels: left, top, width, height.",
        show_default="as it was trained",
    ),
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="all cores but one",
    ),
    setting(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object a line; its key picture is the old name of image.",
    ),
)
@section(
    "Offload",
    setting(
        "--threshold",
        type=number(0, 1),
        metavar="ENTROPY",
        help="Normalised entropy up to which the exit's prediction is taken.",
        show_default="the model's",
    ),
    setting(
        "--timeout",
        type=number(0, above=True),
        default=2.0,
        metavar="SECONDS",
        help="How long an image waits for the server, in seconds; then the exit's prediction is taken.",
    ),
    lowest_threshold,
    most_offload,
    setting(
        "--id",
        "device",
        metavar="ID",
        help="Name of this device in the fleet.",
        show_default="the model's",
    ),
)
@optional_link_options
def predict(
    images: tuple[Path, ...],
    model: Path,
    camera: bool,
    region: Region | None,
    as_json: bool,
    threshold: float | None,
    timeout: float,
    lowest_threshold: float,
    most_offload: float,
    device: str | None,
    threads: int | None,
    link: LinkOptions | None,
) -> None:
    """Classify IMAGES: files and folders. With --broker, uncertain images are offloaded to the server.

    After several images a summary goes to the standard error; with --json or --quiet there is none.
    """
    require("--broker", link is not None, "--timeout", "--lowest-threshold", "--most-offload", "--fleet")
    if not images and not camera:
        raise ConfigError("nothing to classify: name images or folders, or give --camera")
    found = [(file, path) for path in images for file in find_images(path)]
    folder = find_model(model)
    loaded = ClientModel(folder, threads=threads)
    preparation = loaded.manifest.preparation(region or load_region(folder))
    with ExitStack() as stack:
        trunk = None
        if link is not None:
            trunk = _open_offload(link, loaded, device, timeout)
            stack.callback(trunk.close)
        offload_limits = OffloadLimits(lowest_threshold, most_offload)
        predictor = Predictor(loaded, threshold=threshold, trunk=trunk, offload_limits=offload_limits)
        tally = Tally()
        if camera:
            _show("camera", predictor(_capture(preparation)), as_json)
        for file, root in found:
            pixels = _load(file, preparation, alone=len(found) == 1)
            if pixels is not None:
                prediction = predictor(pixels)
                _show(str(file), prediction, as_json)
                tally.add(prediction, class_of(file, root, predictor.class_names))
    if found and not tally.predicted:
        raise DataError(f"none of the {len(found)} images could be read")
    if len(found) > 1 and not as_json and not is_quiet():
        for line in tally.lines():
            echo(line, err=True)


def find_images(path: Path) -> list[Path]:
    """The image itself, or all images in a folder and its subfolders. Raises DataError: there are none."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{path}: the folder holds no images (*.jpg, *.png, ...)")
    return found


def _open_offload(link: LinkOptions, model: ClientModel, device: str | None, timeout: float) -> Offload:
    from splitee.inference.offload import Offload

    # A running device with this name has its own connections; one with the same client id would end them.
    role = f"predict-{os.getpid()}"
    offload = Offload(link, model.manifest, device=device, timeout=timeout, role=role)
    offload.open()
    return offload


def _capture(preparation: Preparation) -> Pixels:
    from splitee_device.capture.camera import capture_image

    return load_image(capture_image(), preparation, name="camera")


def _load(file: Path, preparation: Preparation, *, alone: bool) -> Pixels | None:
    """The decoded image. One that cannot be read is logged and skipped; if `alone`, it is an error."""
    try:
        return load_image(file, preparation)
    except UnreadableImage as error:
        if alone:
            raise
        log.warning("skipped: %s", error)
        return None


def _show(name: str, prediction: Prediction, as_json: bool) -> None:
    if as_json:
        # "picture" is the key's old name, which will be removed with the next release.
        echo_json({"image": name, "picture": name, **asdict(prediction)}, indent=None)
    else:
        echo(
            f"{name}: {prediction.label} {prediction.probability:.1%}, entropy {prediction.entropy:.3f}, "
            f"{prediction.source}, {prediction.milliseconds:.1f} ms"
        )
