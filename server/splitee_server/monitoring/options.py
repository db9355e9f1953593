# SPDX-License-Identifier: Apache-2.0
"""The server's flags for monitoring; Prometheus, Home Assistant and TensorBoard are off by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from splitee.cli.bounds import whole
from splitee.cli.flags import option_group
from splitee.cli.pairs import require
from splitee.cli.settings import setting
from splitee.mqtt.certificate import OwnCertificate
from splitee.mqtt.port import Port
from splitee.protocol.topics import Topics
from splitee_server.monitoring.discovery import MOST_CLASSES
from splitee_server.monitoring.home_assistant import RECORD, HomeAssistant
from splitee_server.monitoring.observer import Observer

if TYPE_CHECKING:
    from splitee_server.monitoring.prometheus import Figures
    from splitee_server.rounds.checkpoints import Checkpoints


@dataclass(frozen=True)
class Discovery:
    """Whether Home Assistant is to find the fleet's devices, and how."""

    wanted: bool
    prefix: str
    classes: bool

    def observer(
        self, link: Port, topics: Topics, state: Path, class_names: Sequence[str] = ()
    ) -> HomeAssistant | None:
        """The observer; None: there is nothing to announce or to remove.

        Args:
            state: folder that records what is announced.
            class_names: the classes of devices that only predict; empty: they are not known.

        Raises:
            ConfigError: the prefix is not valid.
            StateError: `state` cannot be written.
        """
        if not self.wanted and not (state / RECORD).exists():
            return None
        return HomeAssistant(
            link,
            topics,
            state,
            wanted=self.wanted,
            prefix=self.prefix,
            classes=self.classes,
            class_names=class_names,
        )


@dataclass(frozen=True)
class Exporter:
    """Where figures for Prometheus are served. `metrics_port`: None: nowhere."""

    metrics_port: int | None
    metrics_bind: str

    @contextmanager
    def figures(self, certificate: OwnCertificate | None) -> Iterator[Figures | None]:
        """Figures that are served while the context lasts; None: they are not wanted.

        Args:
            certificate: the link's own, if it has one.

        Raises:
            ConfigError: the port is in use.
        """
        if self.metrics_port is None:
            yield None
            return
        from splitee_server.monitoring.prometheus import Figures, serving

        figures = Figures(certificate.end if certificate else None)
        with serving(figures, self.metrics_bind, self.metrics_port):
            yield figures


@dataclass(frozen=True)
class Monitoring:
    """The monitoring that the flags request."""

    metrics: Exporter
    discovery: Discovery
    tensorboard: Path | None

    @contextmanager
    def observers(
        self, link: Port, topics: Topics, store: Checkpoints, certificate: OwnCertificate | None = None
    ) -> Iterator[list[Observer]]:
        """The observers of one run; /metrics is served while the context lasts.

        Args:
            certificate: the link's own, if it has one.

        Raises:
            ConfigError: a setting is not valid, or the port is in use.
            StateError: a directory cannot be written.
        """
        with ExitStack() as stack:
            found: list[Observer] = []
            if (home_assistant := self.discovery.observer(link, topics, store.path)) is not None:
                found.append(home_assistant)
            if self.tensorboard is not None:
                from splitee_server.monitoring.tensorboard import TensorBoard

                found.append(TensorBoard(self.tensorboard, store.history))
            if (figures := stack.enter_context(self.metrics.figures(certificate))) is not None:
                found.append(figures)
            yield found


_DISCOVERY = (
    setting("--home-assistant", is_flag=True, help="Let Home Assistant discover the fleet's devices."),
    setting(
        "--home-assistant-prefix",
        default="homeassistant",
        metavar="TOPIC",
        help="Discovery prefix of Home Assistant.",
    ),
    setting(
        "--home-assistant-classes",
        is_flag=True,
        help=f"A binary sensor in Home Assistant for each class, of devices with at most {MOST_CLASSES}.",
    ),
)
_METRICS = (
    setting(
        "--metrics-port",
        type=whole(1, 65535),
        metavar="PORT",
        help="Port at which figures for Prometheus are served: http://BIND:PORT/metrics.",
        show_default="none, they are not served",
    ),
    setting(
        "--metrics-bind",
        default="127.0.0.1",
        metavar="BIND",
        help="Address at which --metrics-port is served; 0.0.0.0: all of this machine's.",
    ),
)
_OPTIONS = (
    *_METRICS,
    *_DISCOVERY,
    setting(
        "--tensorboard",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder for TensorBoard's event files, with the curves of losses and accuracies.",
        show_default="none",
    ),
)


def _metrics(metrics_port: int | None, metrics_bind: str) -> Exporter:
    require("--metrics-port", metrics_port is not None, "--metrics-bind")
    return Exporter(metrics_port, metrics_bind)


def _discovery(home_assistant: bool, home_assistant_prefix: str, home_assistant_classes: bool) -> Discovery:
    require("--home-assistant", home_assistant, "--home-assistant-classes")
    return Discovery(home_assistant, home_assistant_prefix, home_assistant_classes)


def _monitoring(
    metrics_port: int | None, metrics_bind: str, tensorboard: Path | None, **home_assistant: Any
) -> Monitoring:
    return Monitoring(_metrics(metrics_port, metrics_bind), _discovery(**home_assistant), tensorboard)


discovery_options = option_group("discovery", _discovery, *_DISCOVERY, title="Monitoring")
"""Adds the flags of Home Assistant alone; the command gets them as its argument `discovery: Discovery`."""

monitoring_options = option_group("monitoring", _monitoring, *_OPTIONS, title="Monitoring")
"""Adds the flags; the command gets them as its argument `monitoring: Monitoring`."""

metrics_options = option_group("metrics", _metrics, *_METRICS, title="Monitoring")
"""Adds those of Prometheus alone; the command gets them as its argument `metrics: Exporter`."""
