# SPDX-License-Identifier: Apache-2.0
"""`splitee calibrate`: chooses the threshold of a device's model on held-out images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from splitee.cli.accuracy_words import describe_combination
from splitee.cli.bounds import number
from splitee.cli.command import Command, section
from splitee.cli.link_options import optional_link_options
from splitee.cli.pairs import require
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file
from splitee.cli.verbosity import log_options
from splitee.cli.words import images, share_of
from splitee.errors import ConfigError, DataError, Stalled
from splitee.inference.combination import Combination
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import Measure, Point, write_manifest
from splitee.inference.offload import Offload
from splitee.inference.trunks import TrunkModels
from splitee.inference.uncertainty import Array
from splitee.mqtt.options import LinkOptions
from splitee.samples.fitting import Pixels
from splitee.samples.images import IMAGE_SUFFIXES, load_image
from splitee.samples.storage import Samples, load_region
from splitee_export.calibration import LEAST_IMAGES, MAX_DROP, HeldOut, choose, curve
from splitee_export.combination import HeldOutLogits, fit

BATCH = 16
SHOWN = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # shares of offloads in the table
DIRECTORY = click.Path(path_type=Path)

Labels = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Model and images",
    setting(
        "--model",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="Exported model of a device, to calibrate.",
    ),
    setting(
        "--trunk",
        type=DIRECTORY,
        metavar="DIR",
        help="Exported model of the server, which gives the trunk's predictions.",
        show_default="none, --broker provides them",
    ),
    setting(
        "--data",
        type=DIRECTORY,
        metavar="DIR",
        help="Held-out images as DIR/CLASS/*.jpg.",
        show_default="those that the device kept",
    ),
    setting(
        "--plot",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Image (png, svg or pdf) to draw the curve into.",
        show_default="none",
    ),
)
@section(
    "Threshold",
    setting(
        "--max-drop",
        type=number(0, 1),
        metavar="SHARE",
        help="Largest loss of accuracy, with certainty, against the better of exit and trunk.",
        show_default=f"{MAX_DROP}, or any with --max-offload",
    ),
    setting(
        "--max-offload",
        type=number(0, 1),
        metavar="SHARE",
        help="Largest share of images that may be offloaded to the server.",
        show_default="any",
    ),
    setting(
        "--measure",
        type=click.Choice(["entropy", "confidence"]),
        default="entropy",
        help="Measure of uncertainty; entropy: normalised; confidence: 1 - the largest probability.",
    ),
)
@optional_link_options
@section(
    "Broker",
    setting(
        "--timeout",
        type=number(0, above=True),
        default=10.0,
        metavar="SECONDS",
        help="How long a batch waits for the server, in seconds.",
    ),
    setting(
        "--id",
        "device",
        metavar="ID",
        help="Name of this device in the fleet.",
        show_default="the model's",
    ),
)
def calibrate(
    model: Path,
    trunk: Path | None,
    data: Path | None,
    max_drop: float | None,
    max_offload: float | None,
    measure: Measure,
    plot: Path | None,
    timeout: float,
    device: str | None,
    link: LinkOptions | None,
) -> None:
    """Find the threshold for a wanted accuracy or offload share, and store it in the model's manifest.

    The manifest also gets the weights that combine exit and trunk for offloaded images. Both need at least
    200 held-out images.
    """
    if (trunk is None) == (link is None):
        raise ConfigError("the trunk's predictions are needed: give one of --trunk DIR and --broker URL")
    require("--broker", link is not None, "--timeout", "--fleet")
    if max_drop is None and max_offload is None:
        max_drop = MAX_DROP
    client = ClientModel(model)
    client.manifest = replace(client.manifest, measure=measure)
    pixels, labels = _held_out(model, client, data)
    if len(labels) < LEAST_IMAGES:
        raise DataError(
            f"{data or model}: {images(len(labels))} held out, a threshold is chosen on {LEAST_IMAGES} or "
            f"more: give more with --data; {client.manifest.threshold:.3f} stays"
        )
    if trunk is not None:
        logits = evaluate(client, _local_trunk(client, trunk), pixels, labels)
    else:
        assert link is not None
        offload = Offload(link, client.manifest, device=device, timeout=timeout)
        offload.open()
        try:
            logits = evaluate(client, _remote_trunk(offload), pixels, labels)
        finally:
            offload.close()
    fitted = fit(logits)
    held_out = HeldOut(client.uncertainty(logits.exit), logits.exit_right, fitted.right)
    points = curve(held_out)
    chosen = choose(held_out, max_drop=max_drop, max_offload=max_offload)
    calibrated = replace(
        client.manifest,
        threshold=chosen.threshold,
        threshold_images=len(labels),
        expected_offload=chosen.offload_share,
        expected_accuracy=chosen.accuracy,
        combination=fitted.combination,
        calibration=points,
    )
    if plot is not None:
        draw(points, chosen, measure, plot)
    write_manifest(model, calibrated)
    _report(points, chosen, len(labels), fitted.combination)


def evaluate(
    client: ClientModel, trunk: Callable[[Array], Array], pixels: Pixels, labels: Labels
) -> HeldOutLogits:
    """The logits of exit and trunk for held-out images, uint8 (N, C, H, W) with labels (N,)."""
    exits, trunks = [], []
    for start in range(0, len(labels), BATCH):
        features, logits = client(pixels[start : start + BATCH])
        exits.append(logits)
        trunks.append(trunk(features))
    return HeldOutLogits(np.concatenate(exits), np.concatenate(trunks), labels)


def draw(points: tuple[Point, ...], chosen: Point, measure: str, path: Path) -> None:
    """Plots accuracy over the share of offloads, into a file of the type that its name implies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * point.offload_share for point in points]
    axes.plot(shares, [100 * point.accuracy for point in points])
    axes.plot(
        100 * chosen.offload_share, 100 * chosen.accuracy, "o", label=f"threshold {chosen.threshold:.3f}"
    )
    axes.set(xlabel="images sent to the server, %", ylabel="accuracy, %", title=f"Adaptive by {measure}")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None


def _held_out(model: Path, client: ClientModel, data: Path | None) -> tuple[Pixels, Labels]:
    if data is None:
        samples = Samples.read(model)
        return samples.held_out, samples.labels
    names = client.manifest.class_names
    files = [
        (file, label)
        for label, name in enumerate(names)
        if (data / name).is_dir()
        for file in sorted((data / name).iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f"{data}: expected images in folders named as the classes: {', '.join(names[:10])}")
    preparation = client.manifest.preparation(load_region(model))
    pixels = np.stack([load_image(file, preparation) for file, _ in files])
    return pixels, np.array([label for _, label in files])


def _local_trunk(client: ClientModel, directory: Path) -> Callable[[Array], Array]:
    trunks, manifest = TrunkModels(directory), client.manifest
    entry = trunks.entry(manifest.device)
    if entry is None or (trunks.run, entry.cut) != (manifest.run, manifest.cut):
        raise ConfigError(
            f"--trunk {directory} has no trunk for {manifest.device} at cut {manifest.cut} of run "
            f"{manifest.run}; it is of run {trunks.run}"
        )
    return lambda features: trunks.logits(entry.trunk, features)


def _remote_trunk(offload: Offload) -> Callable[[Array], Array]:
    def request(features: Array) -> Array:
        logits = offload.logits(features)
        if logits is None:
            raise Stalled("the server does not reply: is `splitee serve` running, for this fleet and run?")
        return logits

    return request


def _report(points: tuple[Point, ...], chosen: Point, count: int, combination: Combination) -> None:
    echo(images(count) + " held out")
    echo("threshold  offloads  accuracy")
    for share in SHOWN:
        point = min(points, key=lambda point: abs(point.offload_share - share))
        echo(f"{point.threshold:9.4f}  {point.offload_share:8.1%}  {point.accuracy:8.1%}")
    echo(
        f"chosen: threshold {chosen.threshold:.4f}, {chosen.offload_share:.1%} offloads, "
        f"accuracy {share_of(chosen.accuracy, count)}"
    )
    echo(f"offloaded images: {describe_combination(combination)}")
