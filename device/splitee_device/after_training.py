# SPDX-License-Identifier: Apache-2.0
"""After the training: the device receives the released model and classifies images with it."""

from __future__ import annotations

import logging
from pathlib import Path

from splitee.errors import ModelError
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.protocol.topics import Topics
from splitee.samples.storage import SAMPLES, save_region
from splitee_device.agent.session import Session
from splitee_device.capture.options import Capture
from splitee_device.inference.model_store import ModelStore
from splitee_device.inference.recent import offline, serving_link
from splitee_device.inference.service import InferenceService
from splitee_device.inference.trust import Expected
from splitee_device.settings import DeviceSettings
from splitee_device.upgrade.released import ReleasedSoftware

log = logging.getLogger(__name__)

MODELS = "models"  # the folder of the device's state directory in which released models are kept


def release_in_service(state: Path) -> str | None:
    """The release in service in this state directory; None: there is no model yet."""
    models = state / MODELS
    return ModelStore(models).release if models.exists() else None


def serve(
    session: Session,
    settings: DeviceSettings,
    topics: Topics,
    state: Path,
    expected: Expected,
    capture: Capture | None,
    *,
    outdated: str | None = None,
) -> None:
    """Receive the run's model, and classify images with it if there are any.

    Without images it returns when the model is here, or when the run is finished without one. A device that
    stays waits for the model, because somebody may have to sign it first.

    Args:
        expected: what the device knows of its model.
        capture: the source of images; None: there is none.
        outdated: a release in service that does not end the wait, though it may be of this run.

    Raises:
        RunChanged: the run goes on, or there is another run and the device stays for it.
        StateInUse: another process uses the models.
    """
    link = settings.link
    models = ModelStore(state / MODELS, expected)
    models.keep_samples(state / SAMPLES)
    save_region(models.path, settings.serving.region)
    connection = serving_link(link, session.device, session.instance)
    connection.meter = session.meter
    service = InferenceService(
        connection,
        link,
        topics,
        session.device,
        models,
        instance=session.instance,
        timeout=settings.serving.timeout,
        offload_limits=settings.serving.offload_limits,
        key=settings.serving.key,
        region=settings.serving.region,
        threads=settings.threads,
        unsure=settings.serving.unsure_images(),
        criteria=settings.agreement.criteria,
        latest=settings.agreement.latest_image(settings.serving.capture.watch),
        others=(ReleasedSoftware.of_this_process(settings.serving.software_key),),
    )

    def is_over() -> bool:
        session.drain_after_training(stay=settings.stay)
        opened = session.last_received.round
        session.presence.report(
            "serving",
            opened.round if opened is not None else 0,
            predicted=service.tally.predicted,
            offloaded=service.tally.offloaded,
        )
        is_given_up = session.last_received.is_finished and not settings.stay
        is_here = models.release != outdated and _is_of_run(models, session)
        return capture is None and (is_given_up or is_here)

    with models.locked():
        connection.open(link.connect_timeout)
        try:
            service.run(capture, is_over)
            session.presence.publish_status()  # its model has come since the last one
        finally:
            service.close()
            connection.close(offline(topics, session.device, session.instance))
    if not _is_of_run(models, session):
        log.warning("no model of this run has come: `splitee release` can send it to `splitee infer`")


def _is_of_run(models: ModelStore, session: Session) -> bool:
    """Whether the model in service is of the session's run."""
    try:
        manifest = read_manifest(models.current, ClientManifest)
    except ModelError:
        return False
    spec = session.last_received.spec
    return spec is not None and manifest.run == spec.run
