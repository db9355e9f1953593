# SPDX-License-Identifier: Apache-2.0
"""What a device does in its fleet: in each run it trains its part, and then predicts with the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import cache, partial

from msgspec.structs import replace

from splitee.durable import StateDirectory
from splitee.errors import ConfigError, NetworkError
from splitee.networks.split import build_for
from splitee.networks.zoo import check_factory
from splitee.protocol.codecs import AUTO
from splitee.protocol.fields import Precision
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.after_training import release_in_service, serve
from splitee_device.agent.agent import Agent
from splitee_device.agent.session import RunChanged, Session
from splitee_device.data.images import DeviceData
from splitee_device.inference.trust import Expected
from splitee_device.profiler.auto_codec import AutoCodec
from splitee_device.profiler.auto_cut import AutoCut, ChosenCut
from splitee_device.profiler.auto_precision import choose_precision
from splitee_device.profiler.drift import DriftMonitor
from splitee_device.profiler.meter import Meter
from splitee_device.settings import DeviceSettings
from splitee_device.training.baseline import alone_accuracy
from splitee_device.training.feature_cache import CacheRoom
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer, open_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a device took part in.

    Attributes:
        spec: the run's settings, as the device has made them its own.
        cuts: those it had in the run, or requested.
        class_names: of its images.
        outdated: the release that was in service before this process trained; None: there was none, or this
            process has not trained.
    """

    spec: RunSpec
    cuts: frozenset[int]
    class_names: tuple[str, ...]
    outdated: str | None

    @property
    def expected(self) -> Expected:
        """What the device knows about the model that it is to receive."""
        return Expected(self.spec.network, self.spec.input_shape, self.cuts, self.class_names)


def take_part(session: Session, topics: Topics, directory: StateDirectory, settings: DeviceSettings) -> None:
    """Train and predict in the fleet's run, and also in later runs if the device is to stay."""
    begun = ""  # the run for which this process has last opened the state

    def note_opened(run: str) -> None:
        nonlocal begun
        begun = run

    # Opened once, so that images that come during a second training are new after it.
    open_once = cache(partial(settings.serving.capture.open, topics, session.device))
    while True:
        spec = session.await_run()
        current = replace_fields(settings, fresh=settings.fresh and spec.run != begun)
        try:
            result = _train(session, spec, directory, current, note_opened)
            capture = open_once()
            if result.spec.release or capture is not None:
                serve(
                    session,
                    settings,
                    topics,
                    directory.path,
                    result.expected,
                    capture,
                    outdated=result.outdated,
                )
            session.drain_after_training(stay=settings.stay)
            if not settings.stay:
                return
            session.wait(lambda: False, "the next run")
        except RunChanged as change:
            log.info("%s", change)
        except ConfigError as error:  # the flags are valid: it is the run that does not suit this device
            raise NetworkError(str(error)) from None


def _train(
    session: Session,
    spec: RunSpec,
    directory: StateDirectory,
    settings: DeviceSettings,
    note_opened: Callable[[str], None],
) -> TrainingResult:
    """Take part until the training of the run is over. `note_opened` is called once the state is its."""
    released = release_in_service(directory.path)
    device = settings.device
    check_factory(spec.network, settings.network, whose="the run's", command="start the device")
    if settings.cut is not None:  # checked first, because opening the images takes longer
        build_for(spec, device="meta").check_cut(settings.cut)
    images = settings.open_images(spec, directory.path, session.drain)
    store = DeviceStore(directory, device, images, settings.serving.region)
    spec = replace(spec, precision=_choose_precision(spec, directory, settings, images.data))
    chosen = _choose_cut(session, spec, directory, settings, len(images.data.train))
    store.open(spec, chosen.cut, fresh=settings.fresh)
    note_opened(spec.run)
    log.info(
        "%s: run %s, %s cut at %d, %d images",
        device,
        spec.run,
        spec.network,
        chosen.cut,
        len(images.data.train),
    )
    room = CacheRoom(directory.path, settings.cache << 20)

    def trainer_at(of: RunSpec, cut: int) -> ClientTrainer:
        return open_trainer(of, cut, device=device, data=images.data, cache=room)

    if spec.codec == AUTO:
        auto_codec = AutoCodec(settings.link, device)
        spec = replace(
            spec,
            codec=auto_codec.choose(
                spec, chosen.cut, directory.path, partial(trainer_at, spec), fresh=settings.fresh
            ),
        )
    alone = None
    if settings.baseline:
        alone = alone_accuracy(
            spec, chosen.cut, trainer_at, directory.path, partial(_after_step_alone, session)
        )
    monitor = DriftMonitor(
        Meter(settings.threads, settings.most_memory),
        rounds=settings.adapt_after,
        forecast=chosen.forecast,
        adapts=settings.adapt_cut,
    )
    agent = Agent(
        session,
        spec,
        chosen.cut,
        trainer_at,
        store,
        monitor,
        chosen.capability,
        lowest_cut=settings.floor,
        alone_accuracy=alone,
    )
    agent.take_part(images)
    return TrainingResult(spec, store.cuts, images.data.class_names, released if agent.has_trained else None)


def _choose_precision(
    spec: RunSpec, directory: StateDirectory, settings: DeviceSettings, data: DeviceData
) -> Precision:
    """The precision in which this device trains, measured at its cut or at the lowest that it may choose."""
    cut = settings.cut or settings.floor
    trainer_of = partial(open_trainer, cut=cut, device=settings.device, data=data)
    return choose_precision(settings.precision, spec, directory, trainer_of, fresh=settings.fresh)


def _after_step_alone(session: Session, number: int, step: int, steps: int, loss: float) -> None:
    """Report the progress of the baseline, and handle the fleet's messages meanwhile."""
    session.presence.report("starting", number, step, steps, loss)
    session.drain()


def _choose_cut(
    session: Session, spec: RunSpec, directory: StateDirectory, settings: DeviceSettings, samples: int
) -> ChosenCut:
    """The cut to begin with. A device that may request another one later also gets the costs of all cuts.

    Raises:
        ConfigError: the run was trained at a cut that is no longer allowed.
    """
    if settings.cut is not None and not settings.adapt_cut:
        return ChosenCut(settings.cut)
    auto = AutoCut(
        settings.link,
        settings.device,
        samples,
        settings.threads,
        settings.prefer,
        settings.budget,
        memory=settings.most_memory,
        first=settings.cut,
        lowest=settings.floor,
        adapts=settings.adapt_cut,
    )
    chosen = auto.choose(spec, directory, session.drain, fresh=settings.fresh)
    if chosen.cut < settings.floor:
        raise ConfigError(
            f"this run has been trained at cut {chosen.cut}, below --lowest-cut {settings.floor}: "
            f"--lowest-cut {chosen.cut} continues it, --fresh starts over"
        )
    return chosen
