# SPDX-License-Identifier: Apache-2.0
"""A device's state: refused for another run; where it is torn, trained again to the same bits."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.samples.fitting import Region
from splitee.samples.storage import Samples, load_region
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer

CUT = 2
ROUNDS = 3
SPEC = RunSpec(protocol=1, run="run-a", network="tiny_networks:tiny", num_classes=10, rounds=ROUNDS, seed=1)
OTHER = RunSpec(protocol=1, run="run-b", network="resnet18", num_classes=10, rounds=ROUNDS, seed=1)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=128)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(tmp_path / "pi-1")
    yield state
    state.close()


def new_trainer(data: DeviceData) -> ClientTrainer:
    return ClientTrainer(build_for(SPEC), CUT, SPEC, "pi-1", data)


def train(trainer: ClientTrainer, store: DeviceStore, *numbers: int) -> list[str]:
    """Rounds, each saved and committed; the digest after each."""
    digests = []
    for number in numbers:
        for _ in trainer.round(number):
            pass
        store.save(SPEC, CUT, number, trainer)
        store.commit(number)
        digests.append(trainer.digest())
    return digests


def files(directory: StateDirectory) -> list[Path]:
    return sorted(directory.path.glob("round-*.state"))


def tear(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_training_resumes_from_a_saved_round_with_the_same_bits(
    directory: StateDirectory, data: DeviceData
) -> None:
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    digests = train(new_trainer(data), store, 1, 2, 3)
    trainer = new_trainer(data)
    store.restore(2, digests[1], trainer, partial(copy.deepcopy, trainer.state()))
    assert trainer.digest() == digests[1]
    assert train(trainer, store, 3) == digests[2:]


@pytest.mark.parametrize("torn", [1, 2])
def test_rounds_of_torn_files_are_trained_again_to_the_same_bits(
    directory: StateDirectory, data: DeviceData, caplog: pytest.LogCaptureFixture, torn: int
) -> None:
    """The newest of the two files that are kept, or both: then all rounds are trained again."""
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    digests = train(new_trainer(data), store, 1, 2, 3)
    assert [file.name for file in files(directory)] == ["round-000002.state", "round-000003.state"]
    for file in files(directory)[-torn:]:
        tear(file)
    trainer = new_trainer(data)
    store.restore(3, digests[2], trainer, partial(copy.deepcopy, trainer.state()))
    assert trainer.digest() == digests[2]
    logged = lines(caplog)
    assert len([line for line in logged if "is torn" in line]) == torn
    first = 3 if torn == 1 else 1
    assert logged[-1] == f"state: training round {first} to 3 again, the files are missing"
    assert directory.load_round(3) is not None


def test_device_that_missed_rounds_keeps_the_file_of_its_previous_round(
    directory: StateDirectory, data: DeviceData
) -> None:
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    digests = train(new_trainer(data), store, 1, 5)
    assert [file.name for file in files(directory)] == ["round-000001.state", "round-000005.state"]
    tear(files(directory)[-1])
    trainer = new_trainer(data)
    store.restore(1, digests[0], trainer, dict)
    assert trainer.digest() == digests[0]


def test_uncommitted_round_is_discarded_on_restore(directory: StateDirectory, data: DeviceData) -> None:
    store, trainer = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data)), new_trainer(data)
    initial = copy.deepcopy(trainer.state())
    digests = train(trainer, store, 1)
    for _ in trainer.round(2):
        pass
    store.save(SPEC, CUT, 2, trainer)
    store.restore(1, digests[0], trainer, lambda: initial)
    assert trainer.digest() == digests[0]


def test_digest_that_differs_from_the_commit_is_logged_in_one_line(
    directory: StateDirectory, data: DeviceData, caplog: pytest.LogCaptureFixture
) -> None:
    store, trainer = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data)), new_trainer(data)
    train(trainer, store, 1)
    store.restore(1, "0" * 64, trainer, dict)
    assert lines(caplog) == ["state: round 1 differs from what was committed; going on with it"]


def test_state_of_another_run_or_cut_is_refused_with_both_named(
    directory: StateDirectory, data: DeviceData
) -> None:
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    train(new_trainer(data), store, 1)
    for spec, cut in ((OTHER, CUT), (SPEC, 1)):
        with pytest.raises(StateError) as refusal:
            store.open(spec, cut, fresh=False)
        words = str(refusal.value)
        assert f"holds run run-a (tiny_networks:tiny, cut {CUT}), unfinished" in words
        assert f"this is run {spec.run} ({spec.network}, cut {cut})" in words
        assert ("--cut 2 or --adapt-cut goes on" in words) == (spec is SPEC)
        assert "--fresh starts over" in words
    assert files(directory)
    store.open(OTHER, CUT, fresh=True)
    assert not files(directory)
    assert directory.facts() is None


def test_finished_run_that_continues_is_unfinished_again(directory: StateDirectory, data: DeviceData) -> None:
    store, trainer = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data)), new_trainer(data)
    train(trainer, store, 1)
    store.finish(SPEC, CUT)
    longer = replace(SPEC, rounds=ROUNDS + 1)
    store.open(longer, CUT, fresh=False)
    store.save(longer, CUT, 2, trainer)
    facts = directory.facts()
    assert facts is not None
    assert (facts["finished"], facts["spec"]["rounds"]) == (False, ROUNDS + 1)
    with pytest.raises(StateError, match=r"holds run run-a .* unfinished"):
        store.open(OTHER, CUT, fresh=False)


def test_state_of_a_finished_run_is_replaced_by_the_next_run(
    directory: StateDirectory, data: DeviceData
) -> None:
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    train(new_trainer(data), store, 1)
    store.finish(SPEC, CUT)
    store.open(SPEC, CUT, fresh=False)
    assert files(directory)
    store.open(OTHER, CUT, fresh=False)
    assert not files(directory)


@pytest.mark.parametrize("fresh", [False, True])
def test_files_that_are_no_state_are_kept(directory: StateDirectory, data: DeviceData, fresh: bool) -> None:
    """Somebody gives --state a folder that has files of their own."""
    own = [directory.path / name for name in ("photo.jpg", "set.parquet", "device.toml")]
    for path in own:
        path.write_bytes(b"the owner's")
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data))
    store.open(SPEC, CUT, fresh=fresh)
    train(new_trainer(data), store, 1)
    store.finish(SPEC, CUT)
    store.open(OTHER, CUT, fresh=fresh)
    assert all(path.read_bytes() == b"the owner's" for path in own)
    left = {path.name for path in directory.path.iterdir()} - {path.name for path in own}
    assert left == {".lock", "division.json"}  # the latter is saved anew


def test_changed_region_is_kept_and_logged(
    directory: StateDirectory, data: DeviceData, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Region(0, 0, 20, 20), Region(4, 4, 20, 20)
    store = DeviceStore(directory, "pi-1", DeviceImages(lambda _: data), first)
    store.open(SPEC, CUT, fresh=False)
    assert load_region(directory.path) == first
    train(new_trainer(data), store, 1)
    DeviceStore(directory, "pi-1", DeviceImages(lambda _: data), first).open(SPEC, CUT, fresh=False)
    assert lines(caplog) == []
    DeviceStore(directory, "pi-1", DeviceImages(lambda _: data), second).open(SPEC, CUT, fresh=False)
    assert lines(caplog) == ["state: trained with --region 0,0,20,20 so far, goes on with --region 4,4,20,20"]
    assert load_region(directory.path) == second
    DeviceStore(directory, "pi-1", DeviceImages(lambda _: data)).open(SPEC, CUT, fresh=True)
    assert load_region(directory.path) is None


def test_kept_images_have_the_labels_of_the_runs_classes(directory: StateDirectory, data: DeviceData) -> None:
    """Also where a misspelt class was corrected during round 1, which renumbers the classes."""
    renamed = dataclasses.replace(
        data,
        class_names=data.class_names[::-1],
        train=dataclasses.replace(data.train.in_memory(), labels=9 - data.train.labels),
        held_out=dataclasses.replace(data.held_out.in_memory(), labels=9 - data.held_out.labels),
    )
    for one in (data, renamed):
        store = DeviceStore(directory, "pi-1", DeviceImages(lambda _, one=one: one))
        store.open(SPEC, CUT, fresh=False)
        train(new_trainer(one), store, 1)
        kept = Samples.read(directory.path)
        assert kept.labels.tolist() == one.held_out.labels.tolist()
