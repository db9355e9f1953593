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


def test_what_was_measured_is_reported_as_it_is() -> None:
    rows = predict(measured([1, 2, 3, 4]), WORK)
    assert [row.measured for row in rows] == [True] * 4
    assert [row.step for row in rows] == [true_costs(cut).step for cut in (1, 2, 3, 4)]
    assert [row.memory for row in rows] == [true_costs(cut).memory for cut in (1, 2, 3, 4)]


@pytest.mark.parametrize("cuts", [(1, 4), (1, 2, 4), (1, 3, 4)])
def test_cuts_in_between_follow_from_the_stages(cuts: tuple[int, ...]) -> None:
    rows = predict(measured(cuts), WORK)
    assert [row.cut for row in rows if row.measured] == list(cuts)
    for row in rows:
        truth = true_costs(row.cut)
        for part in ("step", "forward", "backward", "optimizer", "encoding", "inference"):
            assert getattr(row, part) == pytest.approx(getattr(truth, part)), (row.cut, part)
        assert (row.memory, row.payload) == (truth.memory, truth.payload)


def test_cuts_beyond_the_deepest_that_was_measured_go_on_with_its_operations() -> None:
    rows = predict(measured([1, 3]), WORK)
    assert rows[3].step == pytest.approx(true_costs(4).step)
    assert not rows[3].measured


def test_one_measured_cut_gives_all() -> None:
    rows = predict(measured([1]), WORK)
    assert [row.forward for row in rows] == pytest.approx([true_costs(cut).forward for cut in (1, 2, 3, 4)])


def test_nothing_measured_predicts_nothing() -> None:
    assert predict(measured([]), WORK) == ()


def test_memory_is_counted_with_torch_its_code_and_the_pictures_and_with_a_margin_if_unmeasured() -> None:
    rows = predict(measured([1, 4]), WORK)
    pictures = 320 * 3 * 32 * 32
    assert rows[0].needed == (300 + 50) * MIB + pictures + rows[0].memory
    assert rows[1].needed == (300 + 50) * MIB + pictures + round(1.15 * rows[1].memory)
    known = measured([1, 4])
    taught = predict(replace(known, spec=replace(known.spec, soft_labels=1.0)), WORK)
    assert taught[0].needed - rows[0].needed == 320 * 2 * 10  # a float16 for each class


def with_samples(samples: int) -> Work:
    return dataclasses.replace(WORK, samples=samples)


def test_pictures_that_stay_encoded_take_little_memory() -> None:
    work = with_samples(50_000)  # 146 MiB decoded
    room, short = (predict(measured([1], available=available * MIB), work)[0] for available in (600, 500))
    nothing = predict(measured([1]), with_samples(0))[0].needed
    assert room.needed - nothing == 50_000 * 3 * 32 * 32
    assert 0 < short.needed - nothing < 32 * MIB


def test_the_reserve_decides_whether_a_cut_fits() -> None:
    needed = predict(measured([1, 2, 3, 4]), WORK)[1].needed
    just = predict(measured([1, 2, 3, 4], available=needed + WORK.reserve), WORK)
    short = predict(measured([1, 2, 3, 4], available=needed + WORK.reserve - 1), WORK)
    assert (just[1].fits, short[1].fits, short[1].obstacle) == (True, False, "memory")


def test_the_link_gives_upload_round_and_cpu_share() -> None:
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


def test_a_wanted_share_of_the_cpu_excludes_what_keeps_it_busier() -> None:
    rows = predict(measured([1, 2, 3, 4], cores=2.0), Work(320, 10, 0, cpu_share=0.4))
    assert {row.obstacle for row in rows} == {"CPU share"}


def test_values_lie_along_a_place() -> None:
    place = [0.0, 1.0, 3.0, 4.0, 6.0]
    assert along({1: 10.0, 3: 40.0}, place, 2) == pytest.approx(30.0)
    assert along({1: 10.0, 3: 40.0}, place, 4) == pytest.approx(60.0)
    assert along({1: 10.0}, place, 4) == pytest.approx(60.0)
    assert [between({2: 5.0, 4: 9.0}, cut) for cut in (1, 3, 5)] == [5.0, 7.0, 9.0]


def test_a_cut_whose_features_are_larger_than_a_message_does_not_fit() -> None:
    known = measured([1, 2, 3, 4])
    stages = known.description.stages
    wide = replace(stages[0], feature_shape=(32, 512, 512))
    known = replace(known, description=replace(known.description, stages=(wide, *stages[1:])))
    rows = predict(known, WORK)
    assert rows[0].obstacle == "the features of 64 images take 2048 MiB there, at most 256 travel at once"
    assert [row.fits for row in rows[1:]] == [True] * 3
