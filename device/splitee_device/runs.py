"""What a device does in its fleet: run after run, it trains its part and then answers with what it learnt."""

from __future__ import annotations

import logging
from functools import partial

from msgspec.structs import replace

from splitee.codecs import AUTO
from splitee.durable import StateDirectory
from splitee.errors import NetworkError
from splitee.messages import RunSpec
from splitee.topics import Topics
from splitee_device.agent import Agent
from splitee_device.auto_cut import AutoCut
from splitee_device.codec_choice import AutoCodec
from splitee_device.device_settings import DeviceSettings
from splitee_device.serving import serve
from splitee_device.session import RunChanged, Session
from splitee_device.store import DeviceStore
from splitee_device.trainer import open_trainer

log = logging.getLogger(__name__)


def take_part(session: Session, topics: Topics, directory: StateDirectory, settings: DeviceSettings) -> None:
    """Train and answer in the fleet's run; and in those after it, where the device shall stay."""
    while True:
        spec = session.await_run()
        try:
            spec = _train(session, spec, directory, settings)
            if spec.release or settings.serving.pictures() is not None:
                serve(session, settings, topics, directory.path)
            if not settings.stay:
                return
            session.wait(lambda: False, "the next run")
        except RunChanged:
            log.info("the server has opened another run")


def _train(session: Session, spec: RunSpec, directory: StateDirectory, settings: DeviceSettings) -> RunSpec:
    """Take part until the run trains no more; returns what the device made of the run's settings."""
    device, cut, capability = settings.device, settings.cut, None
    pictures = settings.open_data(spec)
    _check_code(spec, settings.network)
    store = DeviceStore(directory, device, pictures)
    if cut is None:
        auto = AutoCut(
            settings.link, device, len(pictures.train), settings.threads, settings.prefer, settings.budget
        )
        cut, capability = auto.choose(spec, directory, session.drain, fresh=settings.fresh)
    store.open(spec, cut, fresh=settings.fresh)
    log.info(
        "%s: run %s, %s cut at %d, %d pictures", device, spec.run, spec.network, cut, len(pictures.train)
    )
    trainer_at = partial(open_trainer, spec, device=device, data=pictures)
    if spec.codec == AUTO:
        auto_codec = AutoCodec(settings.link, device)
        spec = replace(
            spec, codec=auto_codec.choose(spec, cut, directory.path, trainer_at, fresh=settings.fresh)
        )
    Agent(session, spec, cut, trainer_at, store, capability).take_part(pictures)
    return spec


def _check_code(spec: RunSpec, allowed: str | None) -> None:
    """A factory is code of this machine's choice, never of the wire's."""
    if ":" in spec.network and spec.network != allowed:
        raise NetworkError(
            f"the run's network is the factory {spec.network!r}, code that would run here: "
            f"start the device with --network {spec.network} if that is meant"
        )
