"""What a device does in its fleet: run after run, it trains its part and then answers with what it learnt."""

from __future__ import annotations

import logging
from functools import partial

from msgspec.structs import replace

from splitee.durable import StateDirectory
from splitee.errors import ConfigError, NetworkError
from splitee.networks.zoo import check_factory
from splitee.protocol.codecs import AUTO
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.after_training import serve
from splitee_device.agent.agent import Agent
from splitee_device.agent.session import RunChanged, Session
from splitee_device.inference.trust import Expected
from splitee_device.profiler.auto_codec import AutoCodec
from splitee_device.profiler.auto_cut import AutoCut, ChosenCut
from splitee_device.profiler.drift import DriftMonitor
from splitee_device.profiler.meter import Meter
from splitee_device.settings import DeviceSettings
from splitee_device.training.feature_cache import CacheRoom
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import open_trainer

log = logging.getLogger(__name__)


def take_part(session: Session, topics: Topics, directory: StateDirectory, settings: DeviceSettings) -> None:
    """Train and answer in the fleet's run; and in those after it, where the device shall stay."""
    while True:
        spec = session.await_run()
        try:
            spec, cuts = _train(session, spec, directory, settings)
            if spec.release or settings.serving.images() is not None:
                expected = Expected(spec.network, spec.input_shape, cuts)
                serve(session, settings, topics, directory.path, expected)
            if not settings.stay:
                return
            session.wait(lambda: False, "the next run")
        except RunChanged:
            log.info("the server has opened another run")
        except ConfigError as error:  # the flags are valid: it is the run that does not suit this device
            raise NetworkError(str(error)) from None


def _train(
    session: Session, spec: RunSpec, directory: StateDirectory, settings: DeviceSettings
) -> tuple[RunSpec, frozenset[int]]:
    """Take part until the run trains no more.

    Returns:
        What the device made of the run's settings; and the cuts that it was at in the run, or asked for.
    """
    device = settings.device
    pictures = settings.open_data(spec)
    check_factory(spec.network, settings.network, whose="the run's", command="start the device")
    store = DeviceStore(directory, device, pictures)
    chosen = _choose_cut(session, spec, directory, settings, len(pictures.train))
    store.open(spec, chosen.cut, fresh=settings.fresh)
    log.info(
        "%s: run %s, %s cut at %d, %d pictures",
        device,
        spec.run,
        spec.network,
        chosen.cut,
        len(pictures.train),
    )
    cache = CacheRoom(directory.path, settings.cache << 20)
    trainer_at = partial(open_trainer, device=device, data=pictures, cache=cache)
    if spec.codec == AUTO:
        auto_codec = AutoCodec(settings.link, device)
        spec = replace(
            spec,
            codec=auto_codec.choose(
                spec, chosen.cut, directory.path, partial(trainer_at, spec), fresh=settings.fresh
            ),
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
    )
    agent.take_part(pictures)
    return spec, store.cuts


def _choose_cut(
    session: Session, spec: RunSpec, directory: StateDirectory, settings: DeviceSettings, samples: int
) -> ChosenCut:
    """The cut to begin with. A device that may ask for another one later knows what each would cost.

    Raises:
        ConfigError: the run was trained at a cut that is not allowed any more.
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
            f"--lowest-cut {chosen.cut} goes on with it, --fresh starts over"
        )
    return chosen
