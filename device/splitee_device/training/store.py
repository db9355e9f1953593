# SPDX-License-Identifier: Apache-2.0
"""The device's durable state: its last committed rounds, and the round that awaits its commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec.structs import replace

from splitee.durable import StateDirectory, write_atomically
from splitee.errors import StateError
from splitee.protocol.run_spec import RunSpec
from splitee.samples.fitting import Region
from splitee.samples.storage import REGION, SAMPLES, Samples, load_region, sample_indices, save_region
from splitee.training.state import state_writer, unpack_state
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.division import FILE as DIVISION
from splitee_device.data.division import keep_division
from splitee_device.training.baseline import BASELINE
from splitee_device.training.feature_cache import NAME as FEATURES
from splitee_device.training.image_record import IMAGE_RECORD, trained_since
from splitee_device.training.mistakes import Mistakes
from splitee_device.training.trainer import ClientTrainer

log = logging.getLogger(__name__)


IDENTITY = ("run", "network", "cut")  # the facts that identify a state
CALIBRATION_IMAGES = 128
MISTAKES = "mistakes.json"
HELD_OUT_IMAGES = 1000
FILES = (  # of a state, beside facts and rounds
    DIVISION,
    MISTAKES,
    BASELINE,
    IMAGE_RECORD,
    SAMPLES,
    REGION,
    FEATURES,
)


class DeviceStore:
    """States of one run in a state directory, and images to test an exported model."""

    def __init__(
        self, directory: StateDirectory, device: str, images: DeviceImages, region: Region | None = None
    ) -> None:
        """`region`: the part of each original image that is used; None: all of it."""
        self._directory = directory
        self._device = device
        self._images = images
        self._region = region
        self._cuts: set[int] = set()

    @property
    def cuts(self) -> frozenset[int]:
        """The cuts that this device had in the run, or requested, in all of its processes."""
        return frozenset(self._cuts)

    def open(self, spec: RunSpec, cut: int, *, fresh: bool) -> None:
        """Use the directory for this run.

        Raises:
            StateError: it holds another run that has not finished, or this run at another cut.
        """
        self._open(spec, cut, fresh=fresh)
        before = load_region(self._directory.path)
        if self._directory.facts() is not None and before != self._region:
            log.warning(
                "state: trained with --region %s so far, goes on with --region %s",
                before or "none",
                self._region or "none",
            )
        save_region(self._directory.path, self._region)
        self.save_division()

    def _open(self, spec: RunSpec, cut: int, *, fresh: bool) -> None:
        stored = self._directory.facts()
        self._cuts = {cut}
        if stored is None or fresh:
            self._directory.clear(*FILES)
            return
        current = self._facts(spec, cut, finished=False)
        if stored.get("run") == spec.run:
            self._cuts |= _cuts(stored)
        if stored.get("finished", False):
            if stored.get("run") != spec.run:
                self._directory.clear(*FILES)
        elif any(stored.get(key) != current[key] for key in IDENTITY):
            moved = (
                "" if stored.get("run") != spec.run else f"--cut {stored.get('cut')} or --adapt-cut goes on, "
            )
            raise StateError(
                f"{self._directory.path} holds run {stored.get('run')} ({stored.get('network')}, "
                f"cut {stored.get('cut')}), unfinished; this is run {spec.run} ({spec.network}, cut {cut}): "
                f"{moved}--fresh starts over, another --state keeps it"
            )

    def request_cut(self, spec: RunSpec, cut: int, wanted: int) -> None:
        """Record that this device, cut at `cut`, requests cut `wanted`; later processes then know it."""
        self._cuts.add(wanted)
        self._directory.save_facts(self._facts(spec, cut, finished=False))

    def finish(self, spec: RunSpec, cut: int) -> None:
        """The run is over; another run may use the directory."""
        self._directory.save_facts(self._facts(spec, cut, finished=True))

    def save(self, spec: RunSpec, cut: int, number: int, trainer: ClientTrainer) -> None:
        """Save the state after round `number` durably; it counts once the server commits the round."""
        self._cuts.add(cut)
        facts, current = self._directory.facts(), self._facts(spec, cut, finished=False)
        if facts is None or _class_names(facts) != _class_names(current):  # which number the labels
            self._save_samples()
        if facts != current:  # its cut has changed, or a finished run got more rounds
            self._directory.save_facts(current)
        self._directory.save_round(number, state_writer(trainer.state()))

    def save_division(self) -> None:
        """Save what each image is used for from now on."""
        if self._images.data.division is not None:
            keep_division(self._directory.path, self._images.data.division)

    def trained_since(self, number: int) -> int:
        """The first round that was trained on the images of round `number`, which begins; 0: all, so far."""
        return trained_since(self._directory.path, self._images.data.train, number)

    def save_mistakes(self, number: int, mistakes: Mistakes) -> None:
        """Save the exit's most confident mistakes after round `number`, for the device's owner."""
        content = {
            "round": number,
            **mistakes.as_json(self._images.data.held_out.name, self._images.data.class_names),
        }
        write_atomically(self._directory.path / MISTAKES, json.dumps(content, indent=1).encode())

    def commit(self, number: int) -> None:
        self._directory.prune(number)

    def holds(self, number: int, digest: str | None, trainer: ClientTrainer) -> bool:
        """Whether the state after round `number` is here with these weights; then `trainer` has them."""
        here = number in self._directory.rounds() and self._load(number, trainer)
        return here and trainer.digest() == digest

    def restore(
        self,
        number: int,
        digest: str | None,
        trainer: ClientTrainer,
        initial: Callable[[], dict[str, Any]],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Bring `trainer` to its committed round `number`; `initial` gives the state before round 1.

        A round whose file is missing or torn is trained again from the one before. That gives the same
        weights unless something from the server entered them: an average or soft labels. `tick` is called
        after each batch of it.
        """
        found = next((r for r in self._directory.rounds() if r <= number and self._load(r, trainer)), None)
        if found is None:
            trainer.load(initial())
            found = 0
        if found < number:
            log.warning("state: training round %d to %d again, the files are missing", found + 1, number)
        for missing in range(found + 1, number + 1):
            for _ in trainer.round(missing):
                tick()
            self._directory.save_round(missing, state_writer(trainer.state()))
        if digest is not None and trainer.digest() != digest:
            log.warning("state: round %d differs from what was committed; going on with it", number)

    def _load(self, number: int, trainer: ClientTrainer) -> bool:
        data = self._directory.load_round(number)
        if data is None:
            return False
        try:
            trainer.load(unpack_state(data))
        except (StateError, RuntimeError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            log.warning("state: round %d does not fit this network (%s)", number, reason)
            return False
        return True

    def _facts(self, spec: RunSpec, cut: int, *, finished: bool) -> dict[str, Any]:
        known = replace(spec, class_names=self._images.data.class_names)
        return {
            "run": spec.run,
            "network": spec.network,
            "cut": cut,
            "cuts": sorted(self._cuts),
            "finished": finished,
            "device": self._device,
            "spec": json.loads(known.encode()),
        }

    def _save_samples(self) -> None:
        """Save some of the device's images, for work on the model when the data may no longer be there."""
        train, held_out = self._images.data.train, self._images.data.held_out
        each = held_out.take(np.arange(1)).nbytes
        numbers, images = held_out.read(sample_indices(len(held_out), HELD_OUT_IMAGES, each))
        calibration = train.take(sample_indices(len(train), CALIBRATION_IMAGES, each))
        samples = Samples(images, held_out.labels[numbers], calibration)
        write_atomically(self._directory.path / SAMPLES, samples.encode())


def _class_names(facts: dict[str, Any]) -> Any:
    spec = facts.get("spec")
    return spec.get("class_names") if isinstance(spec, dict) else None


def _cuts(facts: dict[str, Any]) -> set[int]:
    """The cuts in a state's facts. Older facts have only the current cut."""
    found = facts.get("cuts")
    listed = found if isinstance(found, list) else []
    return {cut for cut in (*listed, facts.get("cut")) if isinstance(cut, int)}
