# SPDX-License-Identifier: Apache-2.0
"""Each codec on real features at every cut: bytes, speed, and its share of the training step.

    python -m benchmarks.wire [--rounds 5] [--seeds 1,2,3]

Every cut of resnet18 is trained for a few batches on one thread, as on a device, on the built-in
Fashion-MNIST. Each batch's features are encoded and decoded with every codec, and for comparison copied in
memory. Then a small network is trained with each codec, to measure the loss of accuracy. Prints a table on
stderr and one JSON line, and exits with 1 if a figure is out of its bounds. int8+zstd may exceed its share of
the step: a first convolution trains faster than an entropy coder encodes its features. `--codec auto` then
chooses another codec.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.codec_accuracy import Accuracy, measure_accuracy, points_lost
from splitee.networks.split import SplitNetwork, build_network
from splitee.protocol.codecs import AUTO, CODECS, decode_tensor, encode_tensor
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_device.data.images import DeviceData, open_data
from splitee_device.profiler.auto_codec import CANDIDATES, CodecCost, choose_codec
from splitee_device.profiler.cost_model import LinkSpeed
from splitee_device.training.trainer import ClientTrainer

INPUT = (3, 32, 32)
WARM_UP = 3  # first batches, which are not measured
MAX_SHARE = 0.05  # of the training step's time for encoding
MIN_SHRINKING = 5.0  # fp32's bytes over int8+zstd's, in the first residual layer
MAX_LOST = 0.5  # percentage points of accuracy that int8+zstd may cost
LINK = LinkSpeed(upload=125e6, round_trip=0.001)  # 1 Gbit/s, for which `auto` chooses

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One codec at one cut: the best times of all batches; rates in GB of float32 features per second."""

    stem: str
    cut: int
    stage: str
    codec: str
    batch_bytes: int
    bytes_a_sample: float
    shrinking: float  # fp32's bytes over batch_bytes
    encode_gb_s: float
    decode_gb_s: float
    copy_gb_s: float
    step_ms: float  # forward, backward and optimizer step of one batch
    encode_share: float  # encoding over the training step


class Clock:
    """Measures the shortest time of each named call, which other load on the machine disturbs least."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[..., T], *arguments: object) -> T:
        start = time.perf_counter()
        result = work(*arguments)
        self._seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def seconds(self, name: str) -> float:
        return min(self._seconds[name][WARM_UP:])


def measure(network: SplitNetwork, cut: int, data: DeviceData, spec: RunSpec) -> Iterator[Row]:
    """A row for each codec, from `spec.steps` batches."""
    clock = Clock()
    stage = network.stages[cut - 1]
    copied = np.empty((spec.batch_size, *stage.feature_shape), np.float32)
    sizes = dict.fromkeys(CODECS, 0)
    batches = iter(ClientTrainer(network, cut, spec, "benchmark", data).round(1))
    for _ in range(spec.steps):
        features = clock.time("step", next, batches).features
        clock.time("copy", np.copyto, copied, features)
        for codec in CODECS:
            tensor = clock.time(f"encode {codec}", encode_tensor, codec, features)
            clock.time(f"decode {codec}", decode_tensor, tensor)
            sizes[codec] = len(tensor.data)  # of the last batch, whose features are the most realistic
    gigabytes = copied.nbytes / 1e9
    for codec in CODECS:
        yield Row(
            stem=spec.stem,
            cut=cut,
            stage=stage.name,
            codec=codec,
            batch_bytes=sizes[codec],
            bytes_a_sample=sizes[codec] / spec.batch_size,
            shrinking=copied.nbytes / sizes[codec],
            encode_gb_s=gigabytes / clock.seconds(f"encode {codec}"),
            decode_gb_s=gigabytes / clock.seconds(f"decode {codec}"),
            copy_gb_s=gigabytes / clock.seconds("copy"),
            step_ms=1000 * clock.seconds("step"),
            encode_share=clock.seconds(f"encode {codec}") / clock.seconds("step"),
        )


@dataclass(frozen=True)
class Verdict:
    """At how many of its cuts a target is met; `worst`: the worst figure, and where it is."""

    target: str
    met: int
    cuts: int
    worst: str
    required: bool = True

    @property
    def passed(self) -> bool:
        return self.met == self.cuts or not self.required


def verdicts(rows: list[Row]) -> Iterator[Verdict]:
    small = [row for row in rows if row.codec == "int8+zstd" and row.stage.startswith("layer1")]
    if small:
        met = sum(row.shrinking >= MIN_SHRINKING for row in small)
        worst = min(small, key=lambda row: row.shrinking)
        target = f"int8+zstd at least {MIN_SHRINKING:g}x smaller than fp32 after layer1"
        yield Verdict(target, met, len(small), f"{worst.shrinking:.1f}x {_place(worst)}")
    chosen = [_chosen(rows, row) for row in rows if row.codec == "fp16"]
    yield _share("fp16", [row for row in rows if row.codec == "fp16"])
    yield _share(AUTO, chosen)
    yield _share("int8+zstd", [row for row in rows if row.codec == "int8+zstd"], required=False)


def _share(codec: str, rows: list[Row], *, required: bool = True) -> Verdict:
    met = sum(row.encode_share <= MAX_SHARE for row in rows)
    worst = max(rows, key=lambda row: row.encode_share)
    target = f"{codec} encoded in at most {MAX_SHARE:.0%} of the training step"
    return Verdict(target, met, len(rows), f"{worst.encode_share:.1%} {_place(worst)}", required)


def _chosen(rows: list[Row], place: Row) -> Row:
    """The row of the codec that `auto` chooses at the cut and stem of `place`."""
    by_codec = {row.codec: row for row in rows if (row.stem, row.cut) == (place.stem, place.cut)}
    costs = [
        CodecCost(codec, by_codec[codec].encode_share * place.step_ms / 1000, by_codec[codec].batch_bytes)
        for codec in CANDIDATES
    ]
    return by_codec[choose_codec(costs, place.step_ms / 1000, LINK, window=8)[0]]


def _place(row: Row) -> str:
    return f"at cut {row.cut} ({row.stage}, {row.codec}), stem {row.stem}"


def show(console: Console, rows: list[Row]) -> None:
    table = Table("stem", "cut", "stage", "codec", header_style="bold")
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = (form.format(getattr(row, field)) for field, form in _NUMBERS.values())
        table.add_row(
            row.stem, str(row.cut), row.stage, row.codec, *numbers, end_section=row.codec == CODECS[-1]
        )
    console.print(table)


def compare(rows: list[Row], accuracies: list[Accuracy]) -> dict[str, Any]:
    """The benchmark's figures."""
    found = list(verdicts(rows))
    lost = points_lost(accuracies)
    return {
        "benchmark": "wire",
        "targets": [asdict(verdict) for verdict in found],
        "points_lost": {codec: round(points, 2) for codec, points in lost.items()},
        "most_points_lost": MAX_LOST,
        "accuracy": [asdict(accuracy) for accuracy in accuracies],
        "rows": [asdict(row) for row in rows],
        "passed": all(verdict.passed for verdict in found) and lost["int8+zstd"] <= MAX_LOST,
    }


_NUMBERS = {
    "bytes/sample": ("bytes_a_sample", "{:,.0f}"),
    "smaller": ("shrinking", "{:.1f}x"),
    "encode GB/s": ("encode_gb_s", "{:.2f}"),
    "decode GB/s": ("decode_gb_s", "{:.2f}"),
    "copy GB/s": ("copy_gb_s", "{:.1f}"),
    "step ms": ("step_ms", "{:.1f}"),
    "of step": ("encode_share", "{:.1%}"),
}


@click.command()
@click.option("--network", default="resnet18", show_default=True, help="Any torchvision classifier.")
@click.option("--stem", "stems", multiple=True, default=("imagenet", "small"), show_default=True)
@click.option("--cut", "cuts", type=int, multiple=True, help="Only these cuts.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(min=WARM_UP + 1), default=12, show_default=True, help="Per cut.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="For accuracy.")
@click.option("--seeds", default="1,2,3", show_default=True, help="For accuracy.")
def main(
    network: str,
    stems: tuple[str, ...],
    cuts: tuple[int, ...],
    batch_size: int,
    steps: int,
    rounds: int,
    seeds: str,
) -> None:
    """Measure the codecs on real features, and the accuracy that they lose."""
    torch.set_num_threads(1)
    console = Console(stderr=True, width=130)
    data = open_data("builtin:fashion-mnist", input_shape=INPUT)
    rows: list[Row] = []
    for stem in stems:
        split = build_network(network, num_classes=len(data.class_names), stem=stem, seed=0)
        spec = RunSpec(
            protocol=PROTOCOL,
            run="benchmark",
            network=network,
            num_classes=len(data.class_names),
            rounds=1,
            stem=stem,  # type: ignore[arg-type]
            batch_size=batch_size,
            steps=steps,
        )
        for cut in cuts or range(1, split.num_layers):
            rows += measure(split, cut, data, spec)
    show(console, rows)
    accuracies: list[Accuracy] = []
    for accuracy in measure_accuracy([int(seed) for seed in seeds.split(",")], rounds):
        console.print(f"seed {accuracy.seed}, {accuracy.codec}: trunk {accuracy.trunk:.2%}", highlight=False)
        accuracies.append(accuracy)
    result = compare(rows, accuracies)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
