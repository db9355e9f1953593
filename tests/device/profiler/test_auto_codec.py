# SPDX-License-Identifier: Apache-2.0
"""A device's own choice of a codec: by the pace it gives, kept for the run."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.options import LinkOptions
from splitee.networks.split import build_for
from splitee.protocol.codecs import codec
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.profiler.auto_codec import CANDIDATES, AutoCodec, CodecCost, choose_codec, measure_codecs
from splitee_device.profiler.cost_model import LinkSpeed
from splitee_device.training.trainer import ClientTrainer, open_trainer
from splitee_lab.local.brokers import RunningBroker

CUT = 2
SPEC = RunSpec(protocol=1, run="run-a", network="tiny_networks:tiny", num_classes=10, rounds=1, codec="auto")
UNREACHABLE = LinkOptions(BrokerAddress("127.0.0.1", 1), "fleet", 0.1, None)
COSTS = (
    CodecCost("fp16", 0.001, 4_000_000),
    CodecCost("int8", 0.002, 2_000_000),
    CodecCost("int8+zstd", 0.01, 1_000_000),
)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=192)


def trainer_at(cut: int, data: DeviceData) -> ClientTrainer:
    return open_trainer(SPEC, cut, "pi-1", data)


def no_trainer(_cut: int) -> ClientTrainer:
    raise AssertionError("it is not to measure again")


@pytest.mark.parametrize(
    ("step", "upload", "expected"),
    [
        (0.025, 1e9, "fp16"),  # a short step on a fast link: encoding is what counts
        (0.025, 1e8, "int8"),  # 40 ms for fp16, 20 ms for int8, which the step hides
        (0.025, 1e7, "int8+zstd"),  # the link sets the pace
        (2.0, 1e9, "int8+zstd"),  # a long step hides them all: the fewest bytes
        (2.0, 1e5, "int8+zstd"),
    ],
)
def test_codec_choice_prefers_the_fastest_pace_then_the_fewest_bytes(
    step: float, upload: float, expected: str
) -> None:
    chosen, reason = choose_codec(COSTS, step, LinkSpeed(upload, 0.01), window=8)
    assert chosen == expected
    assert f"{upload / 1e6:.3g} MB/s" in reason


def test_default_codec_is_chosen_without_a_measured_link() -> None:
    assert choose_codec(COSTS, 0.025, None, window=8) == ("fp16", "the link is not measured")


def test_codec_costs_are_measured_on_real_batches(data: DeviceData) -> None:
    step, costs = measure_codecs(trainer_at(CUT, data))
    assert 0 < step < 10
    assert tuple(cost.codec for cost in costs) == CANDIDATES
    assert all(0 < cost.encoding < 1 for cost in costs)
    shape = (SPEC.batch_size, *build_for(SPEC).stages[CUT - 1].feature_shape)
    assert [cost.payload for cost in costs[:2]] == [codec(name).size(shape) for name in ("fp16", "int8")]


@pytest.mark.slow
def test_run_keeps_its_codec_until_another_run_or_a_fresh_start(
    data: DeviceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auto, make = AutoCodec(UNREACHABLE, "pi-1"), partial(trainer_at, data=data)
    with caplog.at_level(logging.INFO, "splitee_device.profiler.auto_codec"):
        assert auto.choose(SPEC, CUT, tmp_path, make, fresh=False) == "fp16"
    assert "codec fp16 at cut 2: the link is not measured" in caplog.messages
    assert auto.choose(SPEC, CUT, tmp_path, no_trainer, fresh=False) == "fp16"
    for another, fresh in ((replace(SPEC, run="run-b"), False), (SPEC, True)):
        with pytest.raises(AssertionError, match="measure again"):
            auto.choose(another, CUT, tmp_path, no_trainer, fresh=fresh)


@pytest.mark.slow
def test_codec_is_chosen_again_if_its_file_is_damaged(data: DeviceData, tmp_path: Path) -> None:
    auto, make = AutoCodec(UNREACHABLE, "pi-1"), partial(trainer_at, data=data)
    auto.choose(SPEC, CUT, tmp_path, make, fresh=False)
    (path,) = (tmp_path / "profile").iterdir()
    for content in (path.read_bytes()[:10], b"[]", b'{"run": "run-a", "codec": "gzip"}'):
        path.write_bytes(content)
        assert auto.choose(SPEC, CUT, tmp_path, make, fresh=False) == "fp16"


@pytest.mark.slow
def test_codec_choice_measures_the_link_by_its_echo(
    data: DeviceData, tmp_path: Path, mosquitto_broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    auto = AutoCodec(LinkOptions(mosquitto_broker.address, "auto-codec", 10.0, None), "pi-1")
    with caplog.at_level(logging.INFO, "splitee_device.profiler.auto_codec"):
        chosen = auto.choose(SPEC, CUT, tmp_path, partial(trainer_at, data=data), fresh=False)
    assert chosen in CANDIDATES
    (line,) = (message for message in caplog.messages if message.startswith("codec "))
    assert "MB/s" in line
