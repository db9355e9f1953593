# SPDX-License-Identifier: Apache-2.0
"""Whether the labels are enough: accuracy against their number, and the estimated gain from more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.statistics import Z
from splitee_device.labelling.linear_exit import Labels, Matrix, fit, reduce

NEXT = 50  # labels whose gain is estimated
REPEATS = 10  # divisions into fitted and held-out images
HALVINGS = 8  # of these divisions, in which each class is halved as well
T = 2.36  # of a 95 % interval of the mean of HALVINGS normal values (Student's t)
MOST_HALVED = 12  # classes that are halved: those with the lowest recall
HELD_OUT = 0.3  # of each class
LEAST = 5  # images that a class must have to count
MOST_IMAGES = 3000  # fitted at most, in proportion to the classes, each with LEAST or more
SIZES = 6  # of the growing subsets, in equal ratios
SMALLEST = 0.1  # share of the smallest subset, which has at least as many images as classes
CLEARLY = 1.7  # times T, for the best of MOST_HALVED classes (Bonferroni's correction)
ENOUGH = 0.01  # of accuracy; a smaller gain does not count


@dataclass(frozen=True)
class Spread:
    """A mean over repeats, and the 95 % range of single values, or of the mean, if they are normal."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One subset of the labelled images: the exit is fitted on it, and tested on the held-out images.

    Attributes:
        images: number of labels in the subset.
        by_class: recall of each class, in the order of the classes.
    """

    images: int
    accuracy: Spread
    by_class: tuple[float, ...]


@dataclass(frozen=True)
class ClassWorth:
    """One class, and what more labels of it would add.

    Attributes:
        images: number of labelled images.
        recall: with all of them; None: too few to tell.
        gain: of the mean recall of all classes from `next` more images of this class; None: not estimated.
    """

    name: str
    images: int
    recall: Spread | None = None
    gain: Spread | None = None


@dataclass(frozen=True)
class Enough:
    """Whether the labels are enough, and what to label next.

    Attributes:
        curve: the subsets, from the smallest; () if there are too few labels.
        gain: of the accuracy, from `next` more labels like those so far; None: too few to tell.
        label_next: the class to label next; "": unknown.
        verdict: in words.
        advice: in words, what to label next.
    """

    images: int
    classes: tuple[ClassWorth, ...]
    curve: tuple[Point, ...]
    gain: Spread | None
    label_next: str
    verdict: str
    advice: str
    next: int = NEXT


def how_much_is_enough(
    features: npt.NDArray[np.floating], labels: Labels, class_names: tuple[str, ...], *, seed: int = 0
) -> Enough:
    """Refits an exit on growing subsets of the labelled images.

    Args:
        features: (N, D), of every image.
        labels: (N,), below the number of classes.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    counted = np.flatnonzero(counts >= LEAST)
    if len(counted) < 2:
        return _too_few(counts, class_names)
    chosen = _spread_evenly(np.flatnonzero(np.isin(labels, counted)), labels)
    values, places = reduce(features[chosen]), np.searchsorted(counted, labels[chosen])
    parts = list(_divisions(places, np.random.default_rng(seed)))
    runs = [_fit_growing(values, places, part, len(counted)) for part in parts]  # (sizes, classes) of each
    sizes = [len(rows) for rows in _growing(parts[0][0], len(counted))]
    shares = np.bincount(places) / len(places)
    accuracies = np.stack([run @ shares for run in runs])  # (repeats, sizes)
    recalls = np.stack(runs)  # (repeats, sizes, classes)
    curve = tuple(
        Point(
            size,
            _spread(accuracies[:, at], 0.0),
            _by_class(recalls[:, at].mean(0), counted, len(class_names)),
        )
        for at, size in enumerate(sizes)
    )
    gain = _spread(np.array([_gain(sizes, run) for run in accuracies]))
    worth = _worth_of_classes(values, places, parts[:HALVINGS], recalls[:, -1])
    classes = [ClassWorth(name, int(count)) for name, count in zip(class_names, counts, strict=True)]
    for at, place in enumerate(counted):
        recall = _spread(recalls[:, -1, at], 0.0)
        classes[place] = ClassWorth(class_names[place], int(counts[place]), recall, worth[at])
    best, advice = _advice(classes)
    return Enough(int(counts.sum()), tuple(classes), curve, gain, best, _verdict(gain), advice)


def _divisions(labels: Labels, random: np.random.Generator) -> Iterator[tuple[Labels, Labels]]:
    """Indices to fit, ordered so that each prefix has the classes' shares, and indices to hold out."""
    for _ in range(REPEATS):
        order = np.empty(len(labels))
        held_out = np.zeros(len(labels), bool)
        for label in range(labels.max() + 1):
            places = random.permutation(np.flatnonzero(labels == label))
            out = max(1, round(HELD_OUT * len(places)))
            held_out[places[:out]] = True
            order[places[out:]] = (np.arange(len(places) - out) + random.random()) / (len(places) - out)
        kept = np.flatnonzero(~held_out)
        yield kept[np.argsort(order[kept], kind="stable")], np.flatnonzero(held_out)


def _growing(rows: Labels, classes: int) -> list[Labels]:
    """The first SMALLEST of `rows`, and longer prefixes in equal ratios up to all of them."""
    ends = np.unique(np.geomspace(max(SMALLEST * len(rows), classes), len(rows), SIZES).round().astype(int))
    return [rows[:end] for end in ends]


def _fit_growing(values: Matrix, labels: Labels, part: tuple[Labels, Labels], classes: int) -> Matrix:
    """Recall of each class for each of the growing subsets: (sizes, classes)."""
    rows, held_out = part
    return np.stack([_recalls(values, labels, grown, held_out, classes) for grown in _growing(rows, classes)])


def _recalls(values: Matrix, labels: Labels, rows: Labels, held_out: Labels, classes: int) -> Matrix:
    predicted = fit(values[rows], labels[rows], classes).predict(values[held_out])
    right = np.bincount(labels[held_out], predicted == labels[held_out], minlength=classes)
    found: Matrix = right / np.bincount(labels[held_out], minlength=classes)
    return found


def _gain(sizes: list[int], accuracies: Matrix) -> float:
    """The gain of accuracy from NEXT more labels, if the error keeps falling as a power of their number.

    The power law is fitted to the upper half of the curve by least squares of the logarithms (as in Hestness
    et al., "Deep Learning Scaling is Predictable, Empirically", 2017).
    """
    upper = slice(len(sizes) // 2 - 1, None)
    errors = np.maximum(1 - accuracies[upper], 0.5 / max(sizes[-1], 1))
    exponent = min(np.polyfit(np.log(sizes[upper]), np.log(errors), 1)[0], 0.0)
    return float((1 - accuracies[-1]) * (1 - (1 + NEXT / sizes[-1]) ** exponent))


def _worth_of_classes(
    values: Matrix, labels: Labels, parts: list[tuple[Labels, Labels]], recalls: Matrix
) -> list[Spread | None]:
    """The gain of the mean recall of all classes from NEXT more images of each class.

    Half of a class's images are left out. The loss of recall is taken as the gain from that half, and thus
    from a doubling of the class. NEXT images are worth their part of a doubling.
    """
    classes = recalls.shape[1]
    worth: list[Spread | None] = [None] * classes
    for label in np.argsort(recalls.mean(0), kind="stable")[:MOST_HALVED]:
        costs = []
        for repeat, (rows, held_out) in enumerate(parts):
            own = rows[labels[rows] == label]
            halved = rows[~np.isin(rows, own[: len(own) // 2])]
            without = _recalls(values, labels, halved, held_out, classes)
            costs.append(recalls[repeat].mean() - without.mean())
        doublings = np.log2(1 + NEXT / np.count_nonzero(labels == label))
        worth[label] = _standard_error(np.array(costs) * min(doublings, 1.0))
    return worth


def _verdict(gain: Spread) -> str:
    points = f"{100 * gain.mean:.1f} points of accuracy ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
    if gain.high < ENOUGH:
        return f"Enough for this network: the next {NEXT} labels would add {points}."
    if gain.low > ENOUGH:
        return f"Not yet enough: the next {NEXT} labels would add about {points}."
    return f"Not yet known: the next {NEXT} labels would add {points}."


def _advice(classes: list[ClassWorth]) -> tuple[str, str]:
    """The class to label next, and the advice in words."""
    few = [one for one in classes if one.recall is None]
    if few:
        fewest = min(few, key=lambda one: one.images)
        return (
            fewest.name,
            f"Label {fewest.name} next: it has {fewest.images} images, too few to tell anything.",
        )
    known = [one for one in classes if one.gain is not None]
    best = max(known, key=lambda one: one.gain.mean if one.gain else 0.0)
    lowest = min(known, key=lambda one: one.recall.mean if one.recall else 1.0)
    if best.gain is not None and best.gain.mean > CLEARLY * (best.gain.high - best.gain.mean):
        return best.name, (
            f"Label {best.name} next: {NEXT} more of it would add about {100 * best.gain.mean:.1f} points "
            f"to the mean recall ({100 * best.gain.low:.1f} to {100 * best.gain.high:.1f})."
        )
    recall = 100 * lowest.recall.mean if lowest.recall else 0.0
    return "", (
        "The most valuable class is not known: the differences are within their spread. "
        f"{lowest.name} has the lowest recall, {recall:.0f} %."
    )


def _too_few(counts: Labels, class_names: tuple[str, ...]) -> Enough:
    classes = tuple(ClassWorth(name, int(count)) for name, count in zip(class_names, counts, strict=True))
    verdict = f"Too few to tell: at least two classes need {LEAST} labelled images each."
    fewest = min(classes, key=lambda one: one.images, default=None)
    advice = f"Label {fewest.name} next: it has {fewest.images} images." if fewest else "Make a class first."
    return Enough(int(counts.sum()), classes, (), None, fewest.name if fewest else "", verdict, advice)


def _spread_evenly(rows: Labels, labels: Labels) -> Labels:
    """About MOST_IMAGES of `rows`, in which each class keeps its share, but at least LEAST of its images."""
    if len(rows) <= MOST_IMAGES:
        return rows
    kept = []
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        count = max(MOST_IMAGES * len(own) // len(rows), LEAST)
        kept.append(own[np.arange(count) * len(own) // count])
    return np.sort(np.concatenate(kept))


def _by_class(recalls: Matrix, counted: Labels, classes: int) -> tuple[float, ...]:
    """The recall of all classes; 0 for those with too few images."""
    found = np.zeros(classes)
    found[counted] = recalls
    return tuple(map(float, found))


def _spread(values: Matrix, least: float = -1.0) -> Spread:
    """The range of single values, within `least` and 1."""
    return _interval(values, Z * float(values.std(ddof=1)), least)


def _standard_error(values: Matrix) -> Spread:
    """The range of the mean."""
    return _interval(values, T * float(values.std(ddof=1)) / math.sqrt(len(values)), -1.0)


def _interval(values: Matrix, half: float, least: float) -> Spread:
    mean = float(values.mean())
    return Spread(mean, max(mean - half, least), min(mean + half, 1.0))
