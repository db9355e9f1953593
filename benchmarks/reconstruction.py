# SPDX-License-Identifier: Apache-2.0
"""How well images can be reconstructed from the features of each cut, with honest and with hostile weights.

    python -m benchmarks.reconstruction --data cifar10-train.parquet [--images 700] [--json FILE]

A server that sends client networks chooses their weights, but not their structure. For each network and cut,
the features of held-out images go through each codec. A linear decoder, which is fitted on other images,
estimates the images from them: once with weights that were trained for some steps, once with weights that
pass the image on (benchmarks/attacker_weights.py). For comparison, the table also has an estimate without
features: the mean image. An attacker may do better, with other decoders and weights.
Prints a table in Markdown. Images smaller than the network's input are scaled up, and so have no fine detail.
Takes about 10 minutes of one core.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attacker_weights import hand_images_on
from benchmarks.image_decoder import CHUNK, ImageDecoder, psnr, ssim
from splitee.networks.split import SplitNetwork, build_network
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee_device.data.image_sets import ImageSet, LabelledImages
from splitee_device.data.images import open_data

CODECS = ("fp16", "int8")
BATCH = 32
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """A network, and the cuts to measure."""

    network: str
    stem: str
    size: int  # pixels a side
    cuts: tuple[int, ...]


CASES = (
    Case("resnet18", "small", 32, (1, 2, 4, 6, 8, 9)),
    Case("resnet18", "imagenet", 96, (1, 2, 4, 6, 8, 9)),
    Case("mobilenet_v2", "imagenet", 96, (1, 3, 5, 6, 10, 15, 21, 26, 31, 32)),
)


@dataclass(frozen=True)
class Row:
    """The quality of images reconstructed from the features of a cut; `weights`: honest or hostile."""

    network: str
    stem: str
    cut: int
    stage: str
    features: tuple[int, ...]
    weights: str
    codec: str
    psnr: float  # dB
    ssim: float
    mean_image_psnr: float  # dB, of the mean image as the estimate
    mean_image_ssim: float


class Images:
    """Images (N, 3, H, W) from 0 to 1, to fit decoders and to test them."""

    def __init__(self, fitted: ImageSet, tested: ImageSet) -> None:
        self.fitted, self.tested = (torch.from_numpy(part.images).float() / 255 for part in (fitted, tested))
        self.labels = torch.from_numpy(fitted.labels)

    @staticmethod
    def normalized(images: Tensor) -> Tensor:
        """Images as the network receives them, from -1 to 1."""
        return (images - 0.5) / 0.5


def measure(case: Case, images: Images, classes: int, steps: int) -> Iterator[Row]:
    """A row for each cut, kind of weights, and codec; `steps`: of training the honest weights."""
    last = case.cuts[-1]
    for weights in ("honest", "hostile"):
        network = build_network(
            case.network, num_classes=classes, input_shape=(3, case.size, case.size), stem=case.stem, seed=1
        )
        if weights == "honest":
            train(network, images, steps)
            yield from _reconstruct(case, network, images, weights, case.cuts)
            continue
        inputs = images.normalized(images.fitted)
        is_pooled = len(network.stages[last - 1].feature_shape) == 1
        hand_images_on(network.module, inputs, pooled=False)
        yield from _reconstruct(case, network, images, weights, case.cuts[:-1] if is_pooled else case.cuts)
        if is_pooled:
            hand_images_on(network.module, inputs, pooled=True)
            yield from _reconstruct(case, network, images, weights, (last,))


def train(network: SplitNetwork, images: Images, steps: int) -> None:
    """Train the whole network for `steps` steps of SGD, then set it to evaluation mode."""
    module = network.module.train()
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(images.fitted), (BATCH,), generator=generator)
        loss = F.cross_entropy(module(images.normalized(images.fitted[chosen])), images.labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module.eval()


@torch.no_grad()
def _reconstruct(
    case: Case, network: SplitNetwork, images: Images, weights: str, cuts: tuple[int, ...]
) -> Iterator[Row]:
    """The rows of `cuts`; features of each stage are computed from those of the stage before."""
    mean = images.fitted.mean(0).expand_as(images.tested)
    fitted, tested = (images.normalized(part) for part in (images.fitted, images.tested))
    for stage in network.stages[: max(cuts)]:
        part = network.stage(stage.index).eval()
        fitted, tested = (
            torch.cat([part(chunk) for chunk in torch.split(values, CHUNK)]) for values in (fitted, tested)
        )
        if stage.index not in cuts:
            continue
        for codec in CODECS:

            def transmit(features: Tensor, codec: str = codec) -> Tensor:
                return _over_the_wire(features, codec)

            estimates = ImageDecoder(fitted, images.fitted, transmit).decode(tested)
            yield Row(
                case.network,
                case.stem,
                stage.index,
                stage.name,
                stage.feature_shape,
                weights,
                codec,
                psnr(estimates, images.tested),
                ssim(estimates, images.tested),
                psnr(mean, images.tested),
                ssim(mean, images.tested),
            )


def _over_the_wire(features: Tensor, codec: str) -> Tensor:
    """Features (N, ...) as the server receives them: each batch encoded and decoded."""
    batches = (decode_tensor(encode_tensor(codec, batch.numpy())) for batch in torch.split(features, BATCH))
    return torch.cat([torch.from_numpy(batch.copy()) for batch in batches])


def table(rows: list[Row]) -> str:
    """A Markdown table with a line for each cut: PSNR in dB, and SSIM."""
    lines = []
    for case in dict.fromkeys((row.network, row.stem) for row in rows):
        case_rows = [row for row in rows if (row.network, row.stem) == case]
        first = case_rows[0]
        lines += [
            f"\n{case[0]}, stem {case[1]}; without features (the mean image): "
            f"{first.mean_image_psnr:.1f} dB, {first.mean_image_ssim:.2f}\n",
            "| cut | stage | features | " + " | ".join(f"{w}, {c}" for w in KINDS for c in CODECS) + " |",
            "|---|---|---|" + "---|" * len(KINDS) * len(CODECS),
        ]
        for cut in dict.fromkeys(row.cut for row in case_rows):
            at_cut = {(row.weights, row.codec): row for row in case_rows if row.cut == cut}
            any_row = next(iter(at_cut.values()))
            cells = [f"{at_cut[w, c].psnr:.1f} dB, {at_cut[w, c].ssim:.2f}" for w in KINDS for c in CODECS]
            shape = "x".join(map(str, any_row.features))
            lines.append(f"| {cut} | {any_row.stage} | {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


KINDS = ("honest", "hostile")


@click.command()
@click.option("--data", required=True, metavar="SPEC", help="Images, as for `splitee simulate`.")
@click.option("--images", "count", default=700, show_default=True, help="Images to fit the decoders on.")
@click.option("--test", default=100, show_default=True, help="Held-out images to reconstruct.")
@click.option("--steps", default=40, show_default=True, help="Training steps of the honest weights.")
@click.option("--network", help="Only this network.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows to this file, too.")
def main(
    data: str, count: int, test: int, steps: int, network: str | None, threads: int, target: Path | None
) -> None:
    """Measure how well images can be reconstructed from the features of each cut."""
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    rows: list[Row] = []
    for case in CASES:
        if network in (None, case.network):
            started = time.process_time()
            opened = open_data(data, input_shape=(3, case.size, case.size), limit=max(count, test))
            images = Images(_spread(opened.train, count), _spread(opened.held_out, test))
            rows += measure(case, images, len(opened.class_names), steps)
            click.echo(f"{case}: {time.process_time() - started:.0f} s of CPU", err=True)
    click.echo(table(rows))
    if target is not None:
        target.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    sys.exit(not rows)


def _spread(labelled: LabelledImages, count: int) -> ImageSet:
    """`count` images, evenly spread over the order of their source."""
    images = labelled.in_memory()
    step = max(1, len(images) // count)
    return ImageSet(images.images[::step][:count], images.labels[::step][:count])


if __name__ == "__main__":
    main()
