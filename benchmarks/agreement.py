# SPDX-License-Identifier: Apache-2.0
"""How well a predicted state follows the truth, by the rule of agreement and the image quality.

    python -m benchmarks.agreement [--record FILE]

A tiny network learns four classes of the built-in images and `none`, an empty scene. Sequences of 300 images
show one class after the other, each image with its own shift, lighting and noise. Some images are degraded,
alone or two in a row: blurred, dark, or half covered. So are some training images. Test objects that the
network does not classify reliably are left out, because no rule helps there. Prints one line for each rule
and share of degraded images. The predictions of one sequence are written to FILE.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from benchmarks.tiny import network
from splitee.inference.uncertainty import normalized_entropy, softmax
from splitee_device.data.builtin_sets import FOLDER
from splitee_device.inference.agreement import Agreement, parse_rule

CLASSES = ("none", "trouser", "pullover", "sandal", "bag")
RULES = ("1", "3", "3/5", "weighted")
VIEWS, LEAST_RIGHT = 10, 9  # views of a test object, and how many the network must classify correctly
SEQUENCES, IMAGES, SHORTEST, LONGEST = 40, 300, 12, 45  # images of a sequence, and of one object in it
DEGRADED = (0.0, 0.2, 0.5, 0.8)  # probability that an image is, unless IN_A_ROW before it are
IN_A_ROW = 2  # degraded images, at most
TRAINED_DEGRADED = 0.1  # probability that a training image is
RECORDED, SEED = 0.7, 14  # probability and seed of the sequence in FILE, which the default rule follows
EPOCHS, BATCH = 8, 64
LATE = 3  # images within which a state must follow the truth

Image = npt.NDArray[np.float32]  # (28, 28), in 0..1


@dataclass(frozen=True)
class Sequence300:
    """A sequence: the class of each of N images, and its logits (N, classes)."""

    truth: list[int]
    logits: npt.NDArray[np.float32]

    @property
    def predictions(self) -> list[tuple[str, str, float, float]]:
        """True label, predicted label, its probability and the normalised entropy of each image."""
        rows = zip(self.truth, softmax(self.logits), normalized_entropy(self.logits), strict=True)
        return [
            (CLASSES[true], CLASSES[int(row.argmax())], round(float(row.max()), 4), round(float(entropy), 4))
            for true, row, entropy in rows
        ]


class Scenes:
    """Simulates a camera in front of which objects of each class appear."""

    def __init__(self, part: str, seed: int) -> None:
        with np.load(FOLDER / "fashion-mnist.npz", allow_pickle=False) as arrays:
            names = list(map(str, arrays["class_names"]))
            labels, pixels = arrays[f"{part}_labels"], arrays[f"{part}_images"].astype(np.float32) / 255
        self._objects = [pixels[labels == names.index(name)] for name in CLASSES[1:]]
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Restart the random numbers from `seed`."""
        self._random = np.random.default_rng(seed)

    def leave_out_unknown(self, model: nn.Module) -> None:
        """Keep the objects of which `model` classifies at least LEAST_RIGHT of VIEWS views correctly."""
        for label, objects in enumerate(self._objects, 1):
            views = _as_input([self.view(item) for item in objects for _ in range(VIEWS)])
            with torch.no_grad():
                right = (model(views).argmax(1) == label).view(-1, VIEWS).sum(1) >= LEAST_RIGHT
            self._objects[label - 1] = objects[right.numpy()]

    def item(self, label: int) -> Image:
        """A random object of a class; an empty image for class 0, `none`."""
        if label == 0:
            return np.zeros((28, 28), np.float32)
        objects = self._objects[label - 1]
        return np.asarray(objects[self._random.integers(len(objects))])

    def view(self, item: Image) -> Image:
        """An image of it, shifted by up to 2 pixels, with random brightness, background and noise."""
        shifted = np.roll(item, self._random.integers(-2, 3, 2), (0, 1))
        light = self._random.uniform(0.6, 1.2) * shifted + self._random.uniform(0, 0.2)
        return np.asarray(light + self._random.normal(0, 0.08, light.shape), np.float32).clip(0, 1)

    def degrade(self, image: Image) -> Image:
        """Blur the image by motion, darken it, or cover its lower half."""
        kind = self._random.integers(3)
        if kind == 0:
            return np.asarray(np.mean([np.roll(image, step, 1) for step in range(-6, 7)], 0), np.float32)
        if kind == 1:
            return np.asarray(image * 0.15)
        covered, edge = image.copy(), self._random.integers(8, 15)
        covered[edge:] = self._random.uniform(0.2, 0.9)
        return covered

    def labels(self, count: int) -> list[int]:
        """The true label of each of `count` images; each class is shown for at least SHORTEST images."""
        truth: list[int] = []
        while len(truth) < count:
            others = [label for label in range(len(CLASSES)) if not truth or label != truth[-1]]
            truth += [int(self._random.choice(others))] * int(self._random.integers(SHORTEST, LONGEST + 1))
        left = count - SHORTEST  # the last class is shown for that many images, too
        return truth[:left] + [truth[left - 1]] * SHORTEST

    def sequence(self, model: nn.Module, degraded: float) -> Sequence300:
        truth, images, row = self.labels(IMAGES), [], 0
        item = self.item(truth[0])
        for index, label in enumerate(truth):
            if index and label != truth[index - 1]:
                item = self.item(label)
            row = row + 1 if row < IN_A_ROW and self._random.random() < degraded else 0
            images.append(self.degrade(self.view(item)) if row else self.view(item))
        with torch.no_grad():
            return Sequence300(truth, model(_as_input(images)).numpy())


def _as_input(images: Sequence[Image]) -> torch.Tensor:
    """The images as the network's input, (N, 3, 32, 32)."""
    grey = torch.from_numpy(np.stack(images))[:, None]
    return functional.pad(grey, (2, 2, 2, 2)).repeat(1, 3, 1, 1)


def train() -> nn.Module:
    """Train the network on 4,000 views, of which the share TRAINED_DEGRADED is degraded."""
    torch.manual_seed(0)
    scenes, random = Scenes("train", 0), np.random.default_rng(0)
    model = network(len(CLASSES))
    labels = random.integers(len(CLASSES), size=4000)
    views = [scenes.view(scenes.item(int(label))) for label in labels]
    images = _as_input(
        [scenes.degrade(view) if random.random() < TRAINED_DEGRADED else view for view in views]
    )
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(images[batch]), targets[batch]))
            optimizer.step()
    return model.eval()


def follow(rule: str, sequence: Sequence300) -> tuple[int, list[int]]:
    """Changes of the state beyond those of the truth, and the delay after each true change, in images."""
    agreement = Agreement(parse_rule(rule)(len(CLASSES), None))
    states: list[str] = []
    for index, (_, label, probability, _) in enumerate(sequence.predictions):
        agreement.take(label, probability, index)
        states.append(agreement.state.label if agreement.state is not None else "")
    truth = [CLASSES[label] for label in sequence.truth]
    starts = [index for index, label in enumerate(truth) if not index or label != truth[index - 1]]
    late = []
    for start, end in zip(starts, [*starts[1:], len(truth)], strict=True):
        right = [index - start for index in range(start, end) if states[index] == truth[start]]
        late.append(right[0] if right else end - start)
    changes = sum(label != before for before, label in zip(["", *states], states, strict=False))
    return changes - len(starts), late


@click.command()
@click.option(
    "--record", type=click.Path(path_type=Path), help="Write one sequence's predictions here, as JSON."
)
def main(record: Path | None) -> None:
    torch.set_num_threads(1)
    model = train()
    scenes = Scenes("test", 0)
    scenes.leave_out_unknown(model)
    if record is not None:
        scenes.begin(SEED)
        rows = scenes.sequence(model, RECORDED).predictions
        record.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    for degraded in DEGRADED:
        scenes.begin(1)
        sequences = [scenes.sequence(model, degraded) for _ in range(SEQUENCES)]
        wrong = np.mean([true != label for one in sequences for true, label, _, _ in one.predictions])
        for rule in RULES:
            extra, late = zip(*(follow(rule, sequence) for sequence in sequences), strict=True)
            delays = np.concatenate(late)
            exact = [not further and max(each) <= LATE for further, each in zip(extra, late, strict=True)]
            row = {
                "spoilt": degraded,
                "wrong": round(float(wrong), 3),
                "rule": rule,
                "changes of the truth": round(len(delays) / SEQUENCES, 1),
                "more changes": round(float(np.mean(extra)), 2),
                "images late": round(float(delays.mean()), 2),
                f"later than {LATE}": round(float((delays > LATE).mean()), 3),
                "sequences without either": round(float(np.mean(exact)), 2),
            }
            click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
