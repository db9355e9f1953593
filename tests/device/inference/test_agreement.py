# SPDX-License-Identifier: Apache-2.0
"""The state that predictions agree on: when it changes, when it does not, and how late."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitee.errors import ConfigError
from splitee_device.inference.agreement import (
    PATIENCE,
    RECENT,
    UNSURE,
    WEIGHTED,
    Agreement,
    State,
    parse_rule,
)

CLASSES = 5
CERTAIN = st.floats(0.9, 1.0)
RULES = (WEIGHTED, "3/5", "3")


def agreement(rule: str, classes: int = CLASSES, held: str | None = None) -> Agreement:
    """An agreement that has seen enough images of `held`."""
    made = Agreement(parse_rule(rule)(classes, None))
    for index in range(0 if held is None else 20):
        made.take(str(held), 0.95, index - 20.0)
    return made


def changes(agreed: Agreement, images: Iterable[tuple[str, float]]) -> list[tuple[int, str]]:
    """(index, label) of the images, from 0 on, with which the state changes."""
    found = []
    for index, (label, probability) in enumerate(images):
        if agreed.take(label, probability, float(index)):
            assert agreed.state is not None
            assert agreed.state.since == index
            found.append((index, agreed.state.label))
    return found


def images_of(labels: str, probability: float = 0.95) -> list[tuple[str, float]]:
    return [(label, probability) for label in labels]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 1)), max_size=60), st.sampled_from(RULES))
def test_state_changes_are_at_least_two_images_apart_and_to_another_label(
    images: list[tuple[str, float]], rule: str
) -> None:
    """Holds for any labels and probabilities."""
    made = agreement(rule)
    found = changes(made, images)
    assert all(later - earlier >= 2 for (earlier, _), (later, _) in itertools.pairwise(found))
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(found))
    assert made.state is None or 0 <= made.state.confidence <= 1


def test_state_changes_less_often_than_alternating_labels() -> None:
    assert changes(agreement("3/5"), images_of("baabba")) == [(4, "b")]
    assert changes(agreement("3/5", held="a"), images_of("babababababa")) == [(4, "b"), (9, "a")]


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("bcde"), st.floats(0, 1)), max_size=2), st.integers(3, 9)
        ),
        max_size=12,
    ),
    st.sampled_from((WEIGHTED, "3/5")),
)
def test_state_is_kept_through_two_wrong_images_between_three_right_ones(
    bursts: list[tuple[list[tuple[str, float]], int]], rule: str
) -> None:
    """However probable the wrong predictions are."""
    images = [image for wrong, right in bursts for image in [*wrong, *[("a", 0.9)] * right]]
    assert changes(agreement(rule, held="a"), images) == []


@given(st.lists(CERTAIN, min_size=3, max_size=20), st.sampled_from(RULES))
def test_state_changes_with_the_third_certain_image_in_a_row(probabilities: list[float], rule: str) -> None:
    made = agreement(rule, held="a")
    assert changes(made, [("b", probability) for probability in probabilities]) == [(2, "b")]


@given(st.integers(0, 3), st.sampled_from("acd"), st.lists(CERTAIN, min_size=3, max_size=3))
def test_single_wrong_image_delays_a_state_change_by_one_image_at_most(
    place: int, label: str, probabilities: list[float]
) -> None:
    for rule in (WEIGHTED, "3/5"):
        images = [("b", probability) for probability in probabilities]
        images.insert(place, (label, 0.6))
        [(index, changed)] = changes(agreement(rule, held="a"), images)
        assert changed == "b" and 2 <= index <= 3


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 10_000])
def test_weighted_rule_needs_three_certain_images_for_any_number_of_classes(classes: int) -> None:
    assert changes(agreement(WEIGHTED, classes, "a"), images_of("bbbb", 1.0)) == [(2, "b")]


def test_weighted_rule_gives_less_probable_predictions_less_weight() -> None:
    assert changes(agreement(WEIGHTED, held="a"), images_of("bbbbbb", 0.5)) == [(3, "b")]
    assert changes(agreement(WEIGHTED, held="a"), images_of("bbbaaaa", 0.3)) == []
    assert changes(agreement("3/5", held="a"), images_of("bbbaaaa", 0.3)) == [(2, "b"), (5, "a")]


@pytest.mark.parametrize("rule", RULES)
def test_state_becomes_unsure_after_long_disagreement_until_images_agree(rule: str) -> None:
    made = agreement(rule, held="a")
    window = parse_rule(rule)(CLASSES, None).window
    found = changes(made, images_of("bcde" * 10, 0.5))
    assert [label for _, label in found] == [UNSURE]
    assert found[0][0] <= (PATIENCE + 1) * window
    assert made.state is not None and made.state.confidence == 0
    [(index, label)] = changes(made, images_of("aaa"))
    assert label == "a" and 1 <= index <= 2


def test_confidence_is_the_mean_of_the_latest_images_that_show_the_state() -> None:
    made = agreement("3/5")
    changes(made, [("a", 0.6), ("a", 0.8), ("b", 0.1), ("a", 0.7)])
    assert made.state == State("a", pytest.approx(0.7), 3.0)
    changes(made, images_of("cde" * RECENT, 0.2))
    assert made.state.confidence == pytest.approx(0.7)  # none of these images shows the state


@pytest.mark.parametrize("rule", RULES)
def test_earlier_state_holds_until_images_agree_on_another_label(rule: str) -> None:
    made = Agreement(parse_rule(rule)(CLASSES, "a"), State("a", 0.9, 77.0))
    assert changes(made, images_of("bb")) == []
    assert made.state is not None and (made.state.label, made.state.since) == ("a", 77.0)
    assert changes(made, images_of("b")) == [(0, "b")]


@pytest.mark.parametrize(
    "text", ["", "0", "2/5", "3/6", "6/5", "3/101", "101", "60%/5", "-3", "3/", "Weighted"]
)
def test_invalid_agreement_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected weighted, N"):
        parse_rule(text)


def test_rule_of_one_image_changes_the_state_with_each_new_label() -> None:
    assert changes(agreement("1"), images_of("abb")) == [(0, "a"), (1, "b")]
