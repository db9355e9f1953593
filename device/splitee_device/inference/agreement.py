# SPDX-License-Identifier: Apache-2.0
"""The state that several predictions agree on: it changes with what is seen, not with each wrong image."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from splitee.errors import ConfigError

UNSURE = ""  # the label of no class: predictions agree on nothing, or the model is uncertain
RECENT = 5  # images that a confidence is of, and the window of `Weighted`
PATIENCE = 4  # windows of images that agree on nothing, after which the state is unsure
WEIGHTED = "weighted"
MOST_IMAGES = 100  # that a rule may look at

CHANGE = 0.05  # chance that what is seen changes between two images
SURE = 0.8  # probability, given all images so far, from which on a label is agreed on
TWO = 3.0  # odds of a label that two images in a row show, at most: less than SURE, so a third must agree


@dataclass(frozen=True)
class State:
    """What holds.

    Attributes:
        label: name of the class, or UNSURE.
        confidence: mean probability of the class in the latest images that show it; 0 where it is UNSURE.
        since: time of the image with which it began.
    """

    label: str
    confidence: float
    since: float


class Rule(Protocol):
    """When predictions agree.

    Attributes:
        window: images that it looks at.
    """

    window: int

    def take(self, label: str, probability: float) -> str | None:
        """The label that the latest images agree on, the one given included; None: they agree on nothing."""


class Votes:
    """So many of the latest images have the same label.

    Images from before a label was agreed on do not count against it: of labels that alternate, each would
    else be agreed on in turn, with every image.
    """

    def __init__(self, count: int, window: int, held: str | None = None) -> None:
        """`count`: more than half of `window`, so two labels cannot both have it. `held`: see `Weighted`."""
        self.window = window
        self._count = count
        self._agreed = held
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
    """A label is probable, given all images so far, each of which counts by its own probability.

    The forward algorithm of a hidden Markov model. What is seen changes between two images with the chance
    CHANGE, to any of the K labels. An image whose label has the probability p is as likely as p where that is
    the true label, and as (1 - p) / (K - 1) where another one is. The ratio of the two is bounded, so that
    two images alone change nothing, however sure the model is of them, and three do.
    """

    def __init__(self, classes: int, held: str | None = None) -> None:
        """`held`: label of the state that holds; None: there is none."""
        self.window = RECENT
        self._labels = max(classes, 1) + 1  # UNSURE is one
        self._most_ratio = (TWO * self._labels / CHANGE) ** 0.5
        self._beliefs = {} if held is None else {held: 1.0}  # of the labels that have come
        self._other = 1 / self._labels if held is None else 0.0  # of each of the others

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
        """A label's probability at the next image, before that is looked at."""
        return (1 - CHANGE) * belief + CHANGE / self._labels


def parse_rule(text: str) -> Callable[[int, str | None], Rule]:
    """What makes the rule of `text` for a model with so many classes, and the label of the state that holds.

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


def _votes(count: int, window: int, _classes: int, held: str | None) -> Rule:
    return Votes(count, window, held)


class Agreement:
    """The state that holds: until the rule names another one, or nothing, for long.

    Attributes:
        state: what holds; None: nothing has been agreed on yet.
    """

    def __init__(self, rule: Rule, state: State | None = None) -> None:
        """`state`: what holds from before."""
        self.state = state
        self.rule = rule
        self._recent: deque[tuple[str, float]] = deque(maxlen=RECENT)
        self._without = 0  # images in a row that the rule has named nothing for

    def take(self, label: str, probability: float, time: float) -> bool:
        """The prediction for the next image. Whether the state is another one than before.

        Args:
            label: name of the class, or UNSURE.
            time: seconds, of the image.
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
        """Without a recent image that shows it: the last one."""
        if label == UNSURE:
            return 0.0
        shown = [probability for known, probability in self._recent if known == label]
        if shown:
            return sum(shown) / len(shown)
        return 0.0 if self.state is None else self.state.confidence
