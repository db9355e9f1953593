# SPDX-License-Identifier: Apache-2.0
"""The state that several predictions agree on: it follows what is seen, but not each wrong prediction."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from splitee.errors import ConfigError

UNSURE = ""  # the label for no class: predictions do not agree, or the model is uncertain
RECENT = 5  # images that a confidence is averaged over, and the window of `Weighted`
PATIENCE = 4  # windows without agreement after which the state is unsure
WEIGHTED = "weighted"
MOST_IMAGES = 100  # that a rule may look at

CHANGE = 0.05  # probability that what is seen changes between two images
SURE = 0.8  # posterior probability from which on a label is agreed on
MOST_ODDS = 3.0  # largest odds of a label after two images in a row: less than SURE, so a third must agree


@dataclass(frozen=True)
class State:
    """A state that predictions agree on.

    Attributes:
        label: name of the class, or UNSURE.
        confidence: mean probability of the class in the latest images that show it; 0 for UNSURE.
        since: time of the image with which the state began.
    """

    label: str
    confidence: float
    since: float


class Rule(Protocol):
    """Decides when predictions agree.

    Attributes:
        window: number of images that it considers.
    """

    window: int

    def take(self, label: str, probability: float) -> str | None:
        """The label that the latest images, including this one, agree on; None: they do not agree."""


class Votes:
    """At least `count` of the latest images have the same label.

    Images from before the last agreement do not count against the agreed label. Otherwise, if labels
    alternate, each would be agreed on in turn, with every image.
    """

    def __init__(self, count: int, window: int, current: str | None = None) -> None:
        """`count`: more than half of `window`, so only one label can reach it. `current`: see `Weighted`."""
        self.window = window
        self._count = count
        self._agreed = current
        self._labels: deque[str] = deque(maxlen=window)

    def take(self, label: str, probability: float) -> str | None:
        self._labels.append(label)
        [(most, count)] = Counter(self._labels).most_common(1)
        if count < self._count:
            return None
        if most != self._agreed:
            self._agreed = most
            self._labels = deque([most] * count, self.window)
        return most


class Weighted:
    """A label is probable given all images so far, each weighted by its own probability.

    This is the forward algorithm of a hidden Markov model. Between two images, what is seen changes with the
    probability CHANGE to any of the K labels. An image whose label has the probability p has the likelihood p
    if that is the true label, and (1 - p) / (K - 1) if another one is. The ratio of the two is bounded, so
    that two images alone change nothing, however sure the model is, but three do.
    """

    def __init__(self, classes: int, current: str | None = None) -> None:
        """`current`: label of the current state; None: there is none."""
        self.window = RECENT
        self._labels = max(classes, 1) + 1  # including UNSURE
        self._most_ratio = (MOST_ODDS * self._labels / CHANGE) ** 0.5
        self._beliefs = {} if current is None else {current: 1.0}  # of the labels that have occurred
        self._other = 1 / self._labels if current is None else 0.0  # of each of the others

    def take(self, label: str, probability: float) -> str | None:
        self._beliefs.setdefault(label, self._other)
        like = max(probability, 1 / self._labels)
        unlike = max((1 - probability) / (self._labels - 1), like / self._most_ratio)
        beliefs = {
            known: self._changed(belief) * (like if known == label else unlike)
            for known, belief in self._beliefs.items()
        }
        other = self._changed(self._other) * unlike
        total = sum(beliefs.values()) + other * max(self._labels - len(beliefs), 0)
        self._beliefs = {known: belief / total for known, belief in beliefs.items()}
        self._other = other / total
        best = max(self._beliefs, key=self._beliefs.__getitem__)
        return best if self._beliefs[best] >= SURE else None

    def _changed(self, belief: float) -> float:
        """The prior probability of a label at the next image."""
        return (1 - CHANGE) * belief + CHANGE / self._labels


def parse_rule(text: str) -> Callable[[int, str | None], Rule]:
    """A function that makes the rule of `text` from the model's number of classes and the current label.

    Args:
        text: `weighted`; `3`, three images in a row; or `3/5`, three of the last five.

    Raises:
        ConfigError: it is none of these, or two labels could fulfil it at once.
    """
    if text == WEIGHTED:
        return Weighted
    match = re.fullmatch(r"([1-9][0-9]{0,2})(?:/([1-9][0-9]{0,2}))?", text)
    if match is not None:
        count, window = int(match[1]), int(match[2] or match[1])
        if window / 2 < count <= window <= MOST_IMAGES:
            return partial(_votes, count, window)
    raise ConfigError(
        f"expected {WEIGHTED}, N (images in a row) or N/M (N of the last M: more than half, and M at most "
        f"{MOST_IMAGES})"
    )


def _votes(count: int, window: int, _classes: int, current: str | None) -> Rule:
    return Votes(count, window, current)


class Agreement:
    """The current state. It changes when the rule names another label, or no label for long.

    Attributes:
        state: the current one; None: nothing has been agreed on yet.
    """

    def __init__(self, rule: Rule, state: State | None = None) -> None:
        """`state`: from an earlier process."""
        self.state = state
        self.rule = rule
        self._recent: deque[tuple[str, float]] = deque(maxlen=RECENT)
        self._without = 0  # images in a row without an agreed label

    def take(self, label: str, probability: float, time: float) -> bool:
        """Takes the prediction for the next image; returns whether the state has changed.

        Args:
            label: name of the class, or UNSURE.
            time: of the image, in seconds.
        """
        self._recent.append((label, probability))
        agreed = self.rule.take(label, probability)
        self._without = 0 if agreed is not None else self._without + 1
        if self._without >= PATIENCE * self.rule.window:
            agreed = UNSURE
        before = self.state
        if agreed is None and before is not None:
            agreed = before.label
        if agreed is None:
            return False
        since = time if before is None or agreed != before.label else before.since
        self.state = State(agreed, self._confidence(agreed), since)
        return before is None or agreed != before.label

    def _confidence(self, label: str) -> float:
        """The mean over recent images with this label; without one, the last confidence."""
        if label == UNSURE:
            return 0.0
        shown = [probability for known, probability in self._recent if known == label]
        if shown:
            return sum(shown) / len(shown)
        return 0.0 if self.state is None else self.state.confidence
