"""What each codec makes of real features at every cut: bytes, speed, and its share of the training step.

    python -m benchmarks.wire [--json]

Every cut of resnet18 is trained for a few batches on one thread, as a device does it, on the built-in
Fashion-MNIST. Each batch's features go through every codec, beside a plain copy in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from splitee.codecs import CODECS, decode_tensor, encode_tensor
from splitee.messages import RunSpec
from splitee.network import SplitNetwork, build_network
from splitee_device.data import DeviceData, open_data
from splitee_device.trainer import ClientTrainer

INPUT = (3, 32, 32)
WARM_UP = 3  # batches that are trained, but not measured
MAX_SHARE = 0.05  # of the training step that encoding may take
MIN_SHRINKING = 5.0  # of fp32's bytes by int8+zstd, after the first residual layer
CHECKED = ("fp16", "int8+zstd")

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One codec at one cut: best times over the batches, rates as bytes of float32 features in a second."""

    stem: str
    cut: int
    stage: str
    codec: str
    bytes_a_sample: float
    shrinking: float  # fp32's bytes over these
    encode_gb_s: float
    decode_gb_s: float
    copy_gb_s: float
    step_ms: float  # forward, backward and optimizer step of one batch
    encode_share: float  # encoding over the training step


class Clock:
    """How long each named piece of work takes at best, which a machine that is shared disturbs least."""

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
            sizes[codec] = len(tensor.data)  # of the last batch: the features are the most realistic there
    gigabytes = copied.nbytes / 1e9
    for codec in CODECS:
        yield Row(
            stem=spec.stem,
            cut=cut,
            stage=stage.name,
            codec=codec,
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
    """Whether a target is met at each cut that it speaks of."""

    target: str
    met: int
    cuts: int
    worst: str


def verdicts(rows: list[Row]) -> Iterator[Verdict]:
    small = [row for row in rows if row.codec == "int8+zstd" and row.stage.startswith("layer1")]
    if small:
        met = sum(row.shrinking >= MIN_SHRINKING for row in small)
        worst = min(small, key=lambda row: row.shrinking)
        target = f"int8+zstd at least {MIN_SHRINKING:g}x smaller than fp32 after layer1"
        yield Verdict(target, met, len(small), f"{worst.shrinking:.1f}x {_place(worst)}")
    for codec in CHECKED:
        of_codec = [row for row in rows if row.codec == codec]
        met = sum(row.encode_share <= MAX_SHARE for row in of_codec)
        worst = max(of_codec, key=lambda row: row.encode_share)
        target = f"{codec} encoded in at most {MAX_SHARE:.0%} of the training step"
        yield Verdict(target, met, len(of_codec), f"{worst.encode_share:.1%} {_place(worst)}")


def _place(row: Row) -> str:
    return f"at cut {row.cut} ({row.stage}), stem {row.stem}"


def show(rows: list[Row]) -> None:
    console = Console(width=130)
    table = Table("stem", "cut", "stage", "codec", header_style="bold")
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = (form.format(getattr(row, field)) for field, form in _NUMBERS.values())
        table.add_row(
            row.stem, str(row.cut), row.stage, row.codec, *numbers, end_section=row.codec == CODECS[-1]
        )
    console.print(table)
    for verdict in verdicts(rows):
        console.print(
            f"{verdict.target}: at {verdict.met} of {verdict.cuts} cuts; the worst is {verdict.worst}",
            highlight=False,
        )


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
@click.option("--network", default="resnet18", show_default=True, help="Any torchvision classifier.")
@click.option("--stem", "stems", multiple=True, default=("imagenet", "small"), show_default=True)
@click.option("--cut", "cuts", type=int, multiple=True, help="Only these cuts.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(min=WARM_UP + 1), default=12, show_default=True, help="A cut.")
def main(
    as_json: bool, network: str, stems: tuple[str, ...], cuts: tuple[int, ...], batch_size: int, steps: int
) -> None:
    """Measure the codecs on real features."""
    torch.set_num_threads(1)
    data = open_data("builtin:fashion-mnist", input_shape=INPUT)
    rows: list[Row] = []
    for stem in stems:
        split = build_network(network, num_classes=len(data.class_names), stem=stem, seed=0)
        spec = RunSpec(
            protocol=1,
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
    if as_json:
        report = {"targets": list(map(asdict, verdicts(rows))), "rows": list(map(asdict, rows))}
        click.echo(json.dumps({"benchmark": "wire", **report}))
    else:
        show(rows)


if __name__ == "__main__":
    main()
