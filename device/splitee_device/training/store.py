# SPDX-License-Identifier: Apache-2.0
"""The device's durable state: its last committed rounds, and the round that waits for its commit."""

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
from splitee.samples.kept import SAMPLES, Samples, keep_region, kept_region, some_of
from splitee.training.state import packing, unpack_state
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.division import keep_division
from splitee_device.training.mistakes import Mistakes
from splitee_device.training.trainer import ClientTrainer

log = logging.getLogger(__name__)


IDENTITY = ("run", "network", "cut")  # the facts by which a state is told from another
CALIBRATION_IMAGES = 128
MISTAKES = "mistakes.json"
HELD_OUT_IMAGES = 1000


class DeviceStore:
    """States of one run in a state directory, and the images that an exported model is tried on."""

    def __init__(
        self, directory: StateDirectory, device: str, images: DeviceImages, region: Region | None = None
    ) -> None:
        """`region`: of each picture that the images were made of; None: all of it."""
        self._directory = directory
        self._device = device
        self._images = images
        self._region = region
        self._cuts: set[int] = set()

    @property
    def cuts(self) -> frozenset[int]:
        """Where this device was cut in the run, or has asked to be; over all of its processes."""
        return frozenset(self._cuts)

    def open(self, spec: RunSpec, cut: int, *, fresh: bool) -> None:
        """Use the directory for this run.

        Raises:
            StateError: it holds another run that has not finished, or this one at another cut.
        """
        self._open(spec, cut, fresh=fresh)
        before = kept_region(self._directory.path)
        if self._directory.facts() is not None and before != self._region:
            log.warning(
                "state: trained with --region %s so far, goes on with --region %s",
                before or "none",
                self._region or "none",
            )
        keep_region(self._directory.path, self._region)
        self.save_division()

    def _open(self, spec: RunSpec, cut: int, *, fresh: bool) -> None:
        held = self._directory.facts()
        self._cuts = {cut}
        if held is None or fresh:
            self._directory.clear()
            return
        mine = self._facts(spec, cut, finished=False)
        if held.get("run") == spec.run:
            self._cuts |= _cuts(held)
        if held.get("finished", False):
            if held.get("run") != spec.run:
                self._directory.clear()
        elif any(held.get(key) != mine[key] for key in IDENTITY):
            moved = "" if held.get("run") != spec.run else f"--cut {held.get('cut')} or --adapt-cut goes on, "
            raise StateError(
                f"{self._directory.path} holds run {held.get('run')} ({held.get('network')}, "
                f"cut {held.get('cut')}), unfinished; this is run {spec.run} ({spec.network}, cut {cut}): "
                f"{moved}--fresh starts over, another --state keeps it"
            )

    def ask(self, spec: RunSpec, cut: int, wanted: int) -> None:
        """This device, cut at `cut`, asks to be cut at `wanted`; a later process knows of it."""
        self._cuts.add(wanted)
        self._directory.save_facts(self._facts(spec, cut, finished=False))

    def finish(self, spec: RunSpec, cut: int) -> None:
        """The run is over; another run may use the directory."""
        self._directory.save_facts(self._facts(spec, cut, finished=True))

    def save(self, spec: RunSpec, cut: int, number: int, trainer: ClientTrainer) -> None:
        """The state after round `number`, durable; it counts once the server commits the round."""
        self._cuts.add(cut)
        facts, mine = self._directory.facts(), self._facts(spec, cut, finished=False)
        if facts is None or _class_names(facts) != _class_names(mine):  # by which labels are numbered
            self._save_samples()
        if facts != mine:  # it has moved, or a run that was finished has been given more rounds
            self._directory.save_facts(mine)
        self._directory.save_round(number, packing(trainer.state()))

    def save_division(self) -> None:
        """What each image is for, from now on."""
        if self._images.data.division is not None:
            keep_division(self._directory.path, self._images.data.division)

    def save_mistakes(self, number: int, mistakes: Mistakes) -> None:
        """The exit's most confident mistakes after round `number`, for people at this device."""
        content = {
            "round": number,
            **mistakes.as_json(self._images.data.held_out.name, self._images.data.class_names),
        }
        write_atomically(self._directory.path / MISTAKES, json.dumps(content, indent=1).encode())

    def commit(self, number: int) -> None:
        self._directory.prune(number)

    def holds(self, number: int, digest: str | None, trainer: ClientTrainer) -> bool:
        """Whether the state after round `number` is here with these weights; `trainer` has them then."""
        here = number in self._directory.rounds() and self._load(number, trainer)
        return here and trainer.digest() == digest

    def restore(
        self, number: int, digest: str | None, trainer: ClientTrainer, initial: Callable[[], dict[str, Any]]
    ) -> None:
        """Bring `trainer` to its committed round `number`; `initial` gives what the run begins from.

        A round whose file is missing or torn is trained again from the one before, which gives the same
        weights, as long as nothing of the server's has entered them: no average, no soft labels.
        """
        found = next((r for r in self._directory.rounds() if r <= number and self._load(r, trainer)), None)
        if found is None:
            trainer.load(initial())
            found = 0
        if found < number:
            log.warning("state: training round %d to %d again, the files are missing", found + 1, number)
        for missing in range(found + 1, number + 1):
            for _ in trainer.round(missing):
                pass
            self._directory.save_round(missing, packing(trainer.state()))
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
        """Some of the device's images, for what is done with the model once the data may be gone."""
        train, held_out = self._images.data.train, self._images.data.held_out
        each = held_out.take(np.arange(1)).nbytes
        numbers, images = held_out.read(some_of(len(held_out), HELD_OUT_IMAGES, each))
        calibration = train.take(some_of(len(train), CALIBRATION_IMAGES, each))
        samples = Samples(images, held_out.labels[numbers], calibration)
        write_atomically(self._directory.path / SAMPLES, samples.encode())


def _class_names(facts: dict[str, Any]) -> Any:
    spec = facts.get("spec")
    return spec.get("class_names") if isinstance(spec, dict) else None


def _cuts(facts: dict[str, Any]) -> set[int]:
    """Those of a state's facts; of a state without them the cut that it is at."""
    found = facts.get("cuts")
    listed = found if isinstance(found, list) else []
    return {cut for cut in (*listed, facts.get("cut")) if isinstance(cut, int)}
