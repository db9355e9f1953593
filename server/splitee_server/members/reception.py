"""What comes from devices: joined, decoded, checked against the run, counted when it is refused."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.errors import MalformedMessage
from splitee.protocol.codecs import decode_tensor
from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.labels import decode_entropy, decode_labels
from splitee.protocol.parts import Assembler
from splitee.protocol.rounds import Features, RoundDone, Weights
from splitee.protocol.run_spec import RunSpec
from splitee_server.members.members import Member

log = logging.getLogger(__name__)

LOGGED = 10  # refused messages of one device that are logged; all are counted
COUNTED = 100_000  # senders whose refused messages are counted one by one


@dataclass(frozen=True)
class Batch:
    """One batch at a cut: features (B, ...) float32, labels (B,) int64; the exit's answers in evaluation."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    exit_labels: npt.NDArray[np.int64] | None
    exit_entropy: npt.NDArray[np.float32] | None
    bytes: int


class Reception:
    """Turns payloads into checked messages; a bad one changes nothing but the counts."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._assembler = Assembler()
        self.rejected: Counter[str] = Counter()

    def join(self, device: str, payload: bytes) -> bytes | None:
        """The whole message, once its parts are here."""
        return self._assembler.add(device, payload)

    def forget_parts(self, device: str) -> None:
        """A new process speaks for `device`."""
        self._assembler.forget(device)

    def features(self, payload: bytes, member: Member, shape: tuple[int, ...]) -> tuple[Features, Batch]:
        """A batch of `member`, whose features must have `shape` a sample.

        Raises:
            MalformedMessage: it does not fit the run or the device's cut.
        """
        message = Features.decode(payload)
        self._check_run(message.run)
        largest = max(self._spec.batch_size, EVALUATION_BATCH)
        if message.features.shape[0] > largest:
            raise MalformedMessage(f"{message.features.shape[0]} samples in a batch, at most {largest}")
        features = decode_tensor(message.features, shape)
        count, classes = len(features), self._spec.num_classes
        labels = decode_labels(message.labels, count, classes)
        answers = None, None
        if message.phase == "evaluate":
            exit_labels = decode_labels(message.exit_labels, count, classes)
            answers = exit_labels, decode_entropy(message.exit_entropy, count)  # type: ignore[assignment]
        return message, Batch(features, labels, *answers, bytes=len(payload))

    def round_done(self, payload: bytes) -> RoundDone:
        """Raises MalformedMessage."""
        message = RoundDone.decode(payload)
        self._check_run(message.run)
        return message

    def weights(self, payload: bytes) -> Weights:
        """Raises MalformedMessage."""
        message = Weights.decode(payload)
        self._check_run(message.run)
        return message

    def reject(self, device: str, leaf: str, error: MalformedMessage) -> bool:
        """Count what was refused; the first few of a device are logged, and worth telling it: True."""
        if device not in self.rejected and len(self.rejected) >= COUNTED:
            device = "others"
        self.rejected[device] += 1
        if self.rejected[device] <= LOGGED:
            last = "; further ones are only counted" if self.rejected[device] == LOGGED else ""
            log.warning("%s/%s refused: %s%s", device, leaf, error, last)
        return self.rejected[device] <= LOGGED

    def _check_run(self, run: str) -> None:
        if run != self._spec.run:
            raise MalformedMessage(f"of run {run!r}, this is {self._spec.run!r}")
