# SPDX-License-Identifier: Apache-2.0
"""`splitee infer` and `splitee rollback`: a device's inference as a service, without torch."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

from splitee.cli.bounds import MOST_THREADS, number, whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import stop_on_signals
from splitee.cli.systemd import feed_watchdog, notify
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.options import LinkOptions
from splitee.protocol.topics import Topics, check_name
from splitee.samples.storage import load_region
from splitee_device.inference.agreement_options import AgreementOptions, agreement_options
from splitee_device.inference.model_store import ModelStore
from splitee_device.inference.options import ServingOptions, serving_options
from splitee_device.inference.recent import offline, serving_link
from splitee_device.inference.service import InferenceService
from splitee_device.upgrade.health import Health
from splitee_device.upgrade.released import ReleasedSoftware
from splitee_device.upgrade.software import Software

log = logging.getLogger(__name__)


DIRECTORY = click.Path(path_type=Path)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Device",
    setting("--id", "device", required=True, metavar="ID", help="Name of this device in the fleet."),
    setting(
        "--models", type=DIRECTORY, required=True, metavar="DIR", help="Folder in which models are kept."
    ),
    setting(
        "--model",
        type=DIRECTORY,
        metavar="DIR",
        help="Exported model to put into service first; models released later replace it for good.",
        show_default="the one of --models",
    ),
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="all cores but one",
    ),
)
@serving_options
@agreement_options
@section(
    "Classification",
    setting(
        "--threshold",
        type=number(0, 1),
        metavar="ENTROPY",
        help="Normalised entropy up to which the exit's prediction is taken.",
        show_default="the model's",
    ),
)
@link_options
def infer(
    device: str,
    models: Path,
    model: Path | None,
    serving: ServingOptions,
    agreement: AgreementOptions,
    threshold: float | None,
    threads: int | None,
    link: LinkOptions,
) -> None:
    """Classify new images, publish the predictions to devices/ID/predictions, and accept released models.

    The state that several predictions agree on is retained by the broker at devices/ID/state.
    """
    check_name(device, "--id")
    topics, instance = Topics(link.fleet), time.time_ns()
    capture = serving.capture.open(topics, device)
    if capture is None:
        raise ConfigError("give one of --watch FOLDER, --camera and --stdin")
    latest = agreement.latest_image(serving.capture.watch)
    store = ModelStore(models)
    click.get_current_context().with_resource(store.locked())
    if model is not None:
        store.adopt(model)
    connection = serving_link(link, device, instance)
    service = InferenceService(
        connection,
        link,
        topics,
        device,
        store,
        instance=instance,
        threshold=threshold,
        timeout=serving.timeout,
        offload_limits=serving.offload_limits,
        key=serving.key,
        region=serving.region or load_region(store.path),
        threads=threads,
        unsure=serving.unsure_images(),
        criteria=agreement.criteria,
        latest=latest,
        others=(ReleasedSoftware.of_this_process(serving.software_key),),
    )
    health = Health.of_this_process(link.address)
    warn_before_it_ends(own_certificate(link.tls))
    stop = stop_on_signals()

    def is_over() -> bool:
        health.tick(connection.connected)
        if connection.alive:
            feed_watchdog()
        return stop.is_set()

    notify(f"STATUS=connecting to {link.address}")
    connection.open(link.connect_timeout, stop.is_set)
    notify("READY=1", "STATUS=predicting")
    try:
        service.run(capture, is_over)
        log.info("stopped after %d images", service.tally.predicted)
    finally:
        if Software.of_this_process() is None:  # otherwise the launcher decides what happens next
            notify("STOPPING=1")
        service.close()
        connection.close(offline(topics, device, instance))
