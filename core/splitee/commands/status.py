# SPDX-License-Identifier: Apache-2.0
"""`splitee status`: the fleet as the broker knows it, live or once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from splitee.cli.accuracy_words import describe_accuracies, describe_threshold, describe_weakest
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo_json, plain, plain_cell
from splitee.cli.settings import settings_file, switch
from splitee.cli.update_words import describe_predicted_state, describe_updates
from splitee.cli.verbosity import log_options
from splitee.cli.words import ago, bit_rate, images, megabytes, milliseconds, percent
from splitee.clock import Clock
from splitee.commands.rollouts_table import rollout_reasons, rollouts_table
from splitee.commands.seasons_table import seasons_table
from splitee.errors import ConfigError
from splitee.mqtt.events import Message, Overflow
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.port import Port
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot, FleetView
from splitee.protocol.model_views import ModelInService
from splitee.protocol.viewer_link import viewer_link

FIRST_TIMEOUT = 2.0  # seconds to wait for the first retained message
QUIET = 0.3  # seconds of silence after which all retained messages have come
REFRESH = 0.5  # seconds
REPEAT_AFTER = 15.0  # seconds, at least, between two requests for all retained messages
COLUMNS = ("round", "step", "loss", "exit\n%", "trunk\n%", "images", "MB\nup/down", "seen\nago")


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING)
@section(
    "Results",
    switch("--once", is_flag=True, help="Print the fleet as it is now and exit; so does a pipe."),
    switch("--json", "as_json", is_flag=True, help="Print the fleet once, as JSON."),
)
@link_options
def status(link: LinkOptions, once: bool, as_json: bool) -> None:
    """Show the fleet live: its devices, what the server does, and which devices it waits for."""
    console = Console()
    view = FleetView(link.fleet)
    with closing(viewer_link(link, "status")) as connection:
        connection.subscribe(*view.filters)
        connection.open(link.connect_timeout)
        receive_retained(connection, view)
        if as_json or once or not console.is_terminal:
            _print_once(console, link, view.snapshot(), as_json)
        else:
            follow(console, connection, view)


def receive_retained(connection: Port, view: FleetView) -> None:
    """Receive the messages that the broker retains; they come in one burst after the subscription.

    Those of thousands of devices take seconds. Others, which a fleet at work sends without end, are received
    for FIRST_TIMEOUT at most.
    """
    deadline = time.monotonic() + FIRST_TIMEOUT
    patience = FIRST_TIMEOUT
    while (left := deadline - time.monotonic()) > 0:
        event = connection.receive(min(patience, left))
        if event is None:
            return
        if isinstance(event, Message):
            view.take(event, time.time())
            patience = QUIET
            if event.retained:
                deadline = max(deadline, time.monotonic() + QUIET)


def _print_once(console: Console, link: LinkOptions, snapshot: FleetSnapshot, as_json: bool) -> None:
    if snapshot.empty:
        raise ConfigError(
            f"no fleet {link.fleet!r} at {link.address}: nothing was published for it; check --fleet"
        )
    if as_json:
        echo_json(snapshot)
    else:
        console.print(render(snapshot, time.time()))


def follow(console: Console, connection: Port, view: FleetView, clock: Clock = time.monotonic) -> None:
    """Show the fleet twice a second, until an exception ends it."""
    lost, may_repeat = False, RateLimiter(REPEAT_AFTER, clock)
    with Live(console=console, refresh_per_second=1 / REFRESH, auto_refresh=False) as live:
        while True:
            live.update(render(view.snapshot(), time.time()), refresh=True)
            until = clock() + REFRESH
            while (now := clock()) < until:
                event = connection.receive(until - now)
                if isinstance(event, Message):
                    view.take(event, time.time())
                elif isinstance(event, Overflow):
                    lost = True
            if lost and may_repeat.due():
                connection.subscribe(*view.filters)  # the broker sends what it retains again
                lost = False


def render(snapshot: FleetSnapshot, now: float) -> RenderableType:
    """The fleet as a table under two lines on the run and the server. `now`: seconds since the epoch."""
    lines = [_run_line(snapshot, now), _server_line(snapshot, now)]
    if snapshot.server is not None and (dismissed := snapshot.server.dismissed):
        lines.append(Text(f"{len(dismissed)} dismissed: {', '.join(dismissed)}", "dim"))
    if snapshot.malformed:
        lines.append(Text(f"{snapshot.malformed} malformed messages ignored", "yellow"))
    parts: list[list[RenderableType]]
    if snapshot.devices:
        parts = [
            [_table(snapshot, now)],
            [*_accuracy_lines(snapshot)],
            [*_device_lines(snapshot.devices, now)],
        ]
    else:
        parts = [[Text("no device has connected yet", "dim")]]
    if (rollouts := rollouts_table(snapshot)) is not None:
        parts.append([rollouts, *rollout_reasons(snapshot)])
    if (seasons := seasons_table(snapshot)) is not None:
        parts.append([seasons])
    return Group(*lines, *(one for part in parts if part for one in (Text(), *part)))


def _table(snapshot: FleetSnapshot, now: float) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("device", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("cut", overflow="fold")
    extra = _extra_columns(snapshot.devices)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in extra:
        table.add_column(name, justify="right")
    for index, device in enumerate(snapshot.devices):
        table.add_row(
            *_cells(device, _state(snapshot, device), now),
            *(plain_cell(column[index]) for column in extra.values()),
        )
    return table


def _device_lines(devices: Sequence[DeviceView], now: float) -> Iterator[Text]:
    """The devices' capabilities, their slow links, and the models with which they predict."""
    of_device = (describe_capability, _slow_link, lambda device: _serving_line(device, now))
    return (words for find in of_device for device in devices if (words := find(device)) is not None)


def _accuracy_lines(snapshot: FleetSnapshot) -> Iterator[Text]:
    """The fleet's accuracy, and each device's weakest class and threshold."""
    run, metrics = snapshot.run, snapshot.metrics
    if run is None or metrics is None or not metrics.fleet.images:
        return
    fleet = metrics.fleet
    yield _facts("fleet", describe_accuracies(fleet, fleet.images), describe_weakest(fleet.weakest_class))
    for device in snapshot.devices:
        if device.held_out_samples:
            released = device.released or ReleasedThreshold(threshold=run.threshold)
            yield _facts(device.id, describe_weakest(device.weakest_class), describe_threshold(released))


def _facts(of: str, *words: str) -> Text:
    return Text.assemble(plain(of), (f"  {plain('; '.join(filter(None, words)))}", "dim"))


def _extra_columns(devices: Sequence[DeviceView]) -> dict[str, list[str]]:
    """The cells of columns that are shown only if a device has values: a terminal has 80 characters."""
    columns = {
        "alone": [percent(device.alone_accuracy, "") for device in devices],
        "predicted": [_predicted(device) for device in devices],
        "mem\n%": [_memory(device) for device in devices],
        "°C": [_temperature(device) for device in devices],
    }
    return {name: cells for name, cells in columns.items() if any(cells)}


def _predicted(device: DeviceView) -> str:
    if not device.predicted:
        return ""
    share = f", {device.offloaded / device.predicted:.0%} offloaded" if device.offloaded else ""
    return f"{device.predicted}{share}"


def _memory(device: DeviceView) -> str:
    """The share of its memory limit that the process uses."""
    if device.memory is None or not device.memory_limit:
        return ""
    return f"{min(100 * device.memory / device.memory_limit, 999):.0f}"


def _temperature(device: DeviceView) -> str:
    return "" if device.temperature is None else f"{device.temperature:.0f}"


def _run_line(snapshot: FleetSnapshot, now: float) -> Text:
    line = Text.assemble((plain(snapshot.fleet), "bold"))
    run, phase = snapshot.run, snapshot.phase
    if run is None:
        return line.append("  no run yet", "dim")
    line.append(
        f"  {plain(run.network)}, {plain(run.strategy)}, {run.num_classes} classes, {plain(run.codec)}"
    )
    if phase is not None and phase.phase == "finished":
        return line.append(f"  finished after {snapshot.committed} rounds", "green")
    at = f"  round {phase.round} of {run.rounds}: {phase.phase}" if phase else "  no round yet"
    if run.is_sampled and phase is not None and phase.participants:
        at += f", with {phase.participants} of {len(snapshot.devices)} devices"
    line.append(at).append(f", {snapshot.committed} committed", "dim")
    if snapshot.estimate is not None:
        line.append(f", ends in about {ago(snapshot.estimate - now)}", "dim")
    return line


def _server_line(snapshot: FleetSnapshot, now: float) -> Text:
    server = snapshot.server
    if server is None:
        return Text("no status from the server yet", "yellow")
    line = Text.assemble("server ", (server.state, "green" if server.state == "online" else "red"))
    if server.doing:
        line.append(f", {plain(server.doing)}")
    if server.waiting_for:
        since = {waited.device: waited.since for waited in snapshot.waiting}
        names = [_waited_for(name, since.get(name), now) for name in server.waiting_for]
        line.append(f", waits for {plain(', '.join(names))}", "yellow")
    if server.rejected:
        line.append(f", {server.rejected} messages rejected", "yellow")
    if server.quarantined:
        line.append(f", in quarantine: {', '.join(server.quarantined)}", "red")
    return line


def _waited_for(device: str, since: float | None, now: float) -> str:
    return device if since is None else f"{device} ({ago(now - since)})"


def _state(snapshot: FleetSnapshot, device: DeviceView) -> Text:
    if not device.online:
        return Text("offline", "red")
    if device.upload is not None:
        return Text("slow", "yellow")
    run, phase = snapshot.run, snapshot.phase
    is_sampled = run is not None and run.is_sampled and phase is not None and phase.participants
    if is_sampled and not device.in_phase and device.doing == "waiting":
        return Text("not picked", "dim")
    return plain_cell(device.doing or "?", "green")


def _cells(device: DeviceView, state: Text, now: float) -> tuple[Text, ...]:
    cut = "" if device.cut is None else f"{device.cut} {device.stage or ''}".rstrip()
    cut += "" if device.next_cut is None else f", next {device.next_cut}"
    step = f"{device.step}/{device.steps}" if device.steps else ""
    loss = "" if device.loss is None else f"{device.loss:.3f}"
    seen = "" if device.seen is None else ago(now - device.seen)
    shares = (device.exit_accuracy, device.trunk_accuracy)
    accuracies = ["" if share is None else f"{100 * share:.1f}" for share in shares]
    images = f"{device.held_out_samples:,}" if device.held_out_samples else ""
    cells = (cut, str(device.round), step, loss, *accuracies, images, _traffic_cell(device), seen)
    return plain_cell(device.id), state, *map(plain_cell, cells)


def _traffic_cell(device: DeviceView) -> str:
    """MB of payloads that the process has sent and, if it reports this, received."""
    counts = [device.bytes] if device.traffic is None else [device.bytes, device.traffic.down.payload]
    return "/".join(megabytes(count) if count < 1e8 else f"{count / 1e6:.0f}" for count in counts)


def _serving_line(device: DeviceView, now: float) -> Text | None:
    """What the device predicts, its model, its rates, and updates in progress; None: nothing of these."""
    serving, model, state = device.serving, device.model, device.predicted_state
    words = [] if state is None else [describe_predicted_state(state, now)]
    updates = describe_updates(device.update)
    if model is not None and "model" not in updates:  # an update shows the model too, and its progress
        words.append(_describe_model(model))
    if serving is not None:
        words.append(f"{serving.per_minute:g} images a minute")
        if serving.latency is not None:
            words.append(f"{milliseconds(serving.latency / 1000)} each (median)")
        if serving.offloaded_share:
            words.append(f"{percent(serving.offloaded_share)} offloaded")
        if serving.fallback_share:
            words.append(f"{percent(serving.fallback_share)} without the server's prediction")
        if serving.dropped:
            words.append(f"{images(serving.dropped)} dropped")
    words += updates.values()
    return _facts(device.id, *words) if words else None


def _describe_model(model: ModelInService) -> str:
    reason = f" ({model.reason})" if model.reason else ""
    of = f" of run {model.run}" if model.run else ""
    at = f", round {model.round}" if model.round else ""
    return f"model {model.release[:12]}{of}{at}: {model.state}{reason}"


def _slow_link(device: DeviceView) -> Text | None:
    if not device.online or device.upload is None:
        return None
    return _facts(device.id, f"slow: its link carries {bit_rate(device.upload)}")


def describe_capability(device: DeviceView) -> Text | None:
    """The measurements and the recommendation of the device's profiler; None without a profile."""
    capability = device.capability
    if capability is None:
        return None
    words = [plain(capability.machine), f"{capability.cores:g} cores"]
    words += [f"{milliseconds(cost.seconds)} a batch" for cost in capability.cuts if cost.cut == device.cut]
    if capability.upload is not None:
        words.append(bit_rate(capability.upload))
    recommended = plain(capability.reason).partition(";")[0]
    found = "; ".join(filter(None, (", ".join(words), recommended)))
    return Text.assemble(plain(device.id), (f"  {found}", "dim"))
