# SPDX-License-Identifier: Apache-2.0
"""Cuts that were not measured are predicted from those that were, and from the stages between them."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace
from profiles import MIB, SPEC, measured, true_costs

from splitee.round_time import round_seconds
from splitee_device.profiler.cost_model import LinkSpeed, Work, along, between, predict

WORK = Work(samples=320, steps=10, reserve=64 * MIB)


def test_measured_cuts_are_reported_unchanged() -> None:
    rows = predict(measured([1, 2, 3, 4]), WORK)
    assert [row.measured for row in rows] == [True] * 4
    assert [row.step for row in rows] == [true_costs(cut).step for cut in (1, 2, 3, 4)]
    assert [row.memory for row in rows] == [true_costs(cut).memory for cut in (1, 2, 3, 4)]


@pytest.mark.parametrize("cuts", [(1, 4), (1, 2, 4), (1, 3, 4)])
def test_unmeasured_cuts_in_between_follow_from_the_stages(cuts: tuple[int, ...]) -> None:
    rows = predict(measured(cuts), WORK)
    assert [row.cut for row in rows if row.measured] == list(cuts)
    for row in rows:
        truth = true_costs(row.cut)
        for part in ("step", "forward", "backward", "optimizer", "encoding", "inference"):
            assert getattr(row, part) == pytest.approx(getattr(truth, part)), (row.cut, part)
        assert (row.memory, row.payload) == (truth.memory, truth.payload)


def test_cuts_beyond_the_deepest_measured_one_are_extrapolated() -> None:
    rows = predict(measured([1, 3]), WORK)
    assert rows[3].step == pytest.approx(true_costs(4).step)
    assert not rows[3].measured


def test_single_measured_cut_predicts_the_forward_time_of_all() -> None:
    rows = predict(measured([1]), WORK)
    assert [row.forward for row in rows] == pytest.approx([true_costs(cut).forward for cut in (1, 2, 3, 4)])


def test_cost_prediction_needs_a_measured_cut() -> None:
    assert predict(measured([]), WORK) == ()


def test_needed_memory_includes_code_images_soft_labels_and_a_margin() -> None:
    rows = predict(measured([1, 4]), WORK)
    images = 320 * 3 * 32 * 32
    assert rows[0].needed == (300 + 50) * MIB + images + rows[0].memory
    assert rows[1].needed == (300 + 50) * MIB + images + round(1.15 * rows[1].memory)
    known = measured([1, 4])
    taught = predict(replace(known, spec=replace(known.spec, soft_labels=1.0)), WORK)
    assert taught[0].needed - rows[0].needed == 320 * 2 * 10  # a float16 for each class


def with_samples(samples: int) -> Work:
    return dataclasses.replace(WORK, samples=samples)


def test_images_that_stay_encoded_take_little_memory() -> None:
    work = with_samples(50_000)  # 146 MiB decoded
    room, short = (predict(measured([1], available=available * MIB), work)[0] for available in (600, 500))
    without_images = predict(measured([1]), with_samples(0))[0].needed
    assert room.needed - without_images == 50_000 * 3 * 32 * 32
    assert 0 < short.needed - without_images < 32 * MIB


def test_reserve_decides_whether_a_cut_fits() -> None:
    needed = predict(measured([1, 2, 3, 4]), WORK)[1].needed
    just = predict(measured([1, 2, 3, 4], available=needed + WORK.reserve), WORK)
    short = predict(measured([1, 2, 3, 4], available=needed + WORK.reserve - 1), WORK)
    assert (just[1].fits, short[1].fits, short[1].obstacle) == (True, False, "memory")


def test_upload_round_and_cpu_share_follow_from_the_link_speed() -> None:
    link = LinkSpeed(upload=1e6, round_trip=0.02)
    row = predict(measured([1, 2, 3, 4], cores=2.0), Work(320, 10, 0, link=link))[0]
    compute, upload = row.step + row.encoding, row.payload / 1e6
    assert row.upload == upload
    assert row.round == pytest.approx(round_seconds(10, compute, upload, 0.02, SPEC.window))
    assert upload > compute  # so the device waits for the link, and one core of two is busy for a part only
    assert row.cpu_share == pytest.approx(compute / upload / 2)


@pytest.mark.parametrize(("cores", "sending"), [(0.5, 0.012), (1.0, 0.006), (2.0, 0.0)])
def test_sending_takes_cpu_from_training_unless_a_core_is_free(cores: float, sending: float) -> None:
    link = LinkSpeed(upload=1e9, round_trip=0.0, message_cpu=0.004, byte_cpu=0.002 / true_costs(1).payload)
    known = measured([1, 2, 3, 4], cores=cores)
    assert known.threads == 1
    row = predict(known, Work(320, 10, 0, link=link))[0]
    assert row.sending == pytest.approx(sending)
    assert row.compute == pytest.approx(row.step + row.encoding + sending)
    assert row.round == pytest.approx(10 * row.compute + row.payload / 1e9)


def test_cuts_above_the_wanted_cpu_share_do_not_fit() -> None:
    rows = predict(measured([1, 2, 3, 4], cores=2.0), Work(320, 10, 0, cpu_share=0.4))
    assert {row.obstacle for row in rows} == {"CPU share"}


def test_along_extrapolates_values_and_between_only_interpolates() -> None:
    place = [0.0, 1.0, 3.0, 4.0, 6.0]
    assert along({1: 10.0, 3: 40.0}, place, 2) == pytest.approx(30.0)
    assert along({1: 10.0, 3: 40.0}, place, 4) == pytest.approx(60.0)
    assert along({1: 10.0}, place, 4) == pytest.approx(60.0)
    assert [between({2: 5.0, 4: 9.0}, cut) for cut in (1, 3, 5)] == [5.0, 7.0, 9.0]


def test_cut_whose_features_exceed_a_message_does_not_fit() -> None:
    known = measured([1, 2, 3, 4])
    stages = known.description.stages
    wide = replace(stages[0], feature_shape=(32, 512, 512))
    known = replace(known, description=replace(known.description, stages=(wide, *stages[1:])))
    rows = predict(known, WORK)
    assert rows[0].obstacle == "the features of 64 images take 2048 MiB there, at most 256 travel at once"
    assert [row.fits for row in rows[1:]] == [True] * 3
