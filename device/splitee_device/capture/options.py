# SPDX-License-Identifier: Apache-2.0
"""The flags for the source of a device's images, and for when images are taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from splitee.cli.bounds import number, whole
from splitee.cli.pairs import require
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.protocol.topics import Topics
from splitee_device.capture.backlog import Backlog, Source
from splitee_device.capture.camera import Camera, rate_for
from splitee_device.capture.change import ChangeFilter
from splitee_device.capture.folder import Folder
from splitee_device.capture.pace import Pace
from splitee_device.capture.standard_input import StandardInput
from splitee_device.capture.trigger import Trigger

ROOM = 16  # images of a stream that wait, unless --backlog is given: half a second of a fast camera
OWN = "own"  # of --on-topic: the device's inbox/trigger
LONGEST_TOPIC, LONGEST_PAYLOAD = 200, 200  # characters


@dataclass(frozen=True)
class Capture:
    """The source of the images that a device classifies, opened once.

    Attributes:
        images: waiting to be classified.
        trigger: what causes images to be taken; None: nothing needs to.
        change: lets only images pass that differ from the last; None: all pass.
    """

    images: Backlog
    trigger: Trigger | None = None
    change: ChangeFilter | None = None


@dataclass(frozen=True)
class CaptureOptions:
    """The source of images, as described in `splitee infer --help`."""

    watch: Path | None = None
    existing: bool = False
    watch_poll: float | None = None  # seconds; None: the system reports changes
    camera: bool = False
    stdin: bool = False
    every: float = 0.0  # seconds
    on_topic: str | None = None
    on_payload: str | None = None
    on_topic_for: float = 0.0  # seconds
    on_change: float | None = None  # share of the full scale
    backlog: int | None = None  # images; 0: none is dropped

    @property
    def is_given(self) -> bool:
        """Whether there are images to classify."""
        return self.watch is not None or self.camera or self.stdin

    def open(self, topics: Topics, device: str) -> Capture | None:
        """None: there is no source. Raises DataError: there is no such folder, or no camera program."""
        change = None if self.on_change is None else ChangeFilter(self.on_change)
        if self.watch is not None:
            folder = Folder(self.watch, existing=self.existing, poll=self.watch_poll)
            return Capture(self._backlog(folder, 0), None, change)
        if not self.is_given:
            return None
        pace = Pace(self.every, None if self.on_topic is None else self.on_topic_for)
        source = Camera(pace, rate_for(self.every)) if self.camera else StandardInput(pace)
        trigger = None
        if self.on_topic is not None:
            topic = topics.trigger(device) if self.on_topic == OWN else self.on_topic
            trigger = Trigger(topic, self.on_payload, pace)
        return Capture(self._backlog(source, ROOM), trigger, change)

    def _backlog(self, source: Source, default: int) -> Backlog:
        room = default if self.backlog is None else self.backlog
        return Backlog(source, room or ROOM, drops=room > 0)


class TopicType(click.ParamType[str]):
    """A topic, without wildcards."""

    name = "topic"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not 1 <= len(value) <= LONGEST_TOPIC or set(value) & set("+#\0"):
            raise ConfigError(
                f"--on-topic {value[:LONGEST_TOPIC]!r}: expected one topic, without + and #, of at most "
                f"{LONGEST_TOPIC} characters"
            )
        return value


CAPTURE_SETTINGS = (
    setting(
        "--watch",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Classify the images that come into this folder.",
        show_default="none",
    ),
    setting(
        "--existing",
        is_flag=True,
        help="Also classify images that are in the --watch folder at each start.",
    ),
    setting(
        "--watch-poll",
        type=number(0.2, 3600),
        metavar="SECONDS",
        help="Scan the --watch folder every so many seconds: for network drives, where the system does not "
        "report changes.",
        show_default="the system reports changes",
    ),
    setting("--camera", is_flag=True, help="Classify the images of this device's camera."),
    setting(
        "--stdin",
        is_flag=True,
        help="Classify the images of a stream, motion JPEG on standard input, until it ends.",
    ),
    setting(
        "--every",
        type=number(0),
        default=10.0,
        metavar="SECONDS",
        help="Time between two images of --camera or --stdin, in seconds; 0: all are classified.",
    ),
    setting(
        "--on-topic",
        type=TopicType(),
        metavar="TOPIC",
        help="Classify images of --camera or --stdin only after a message on this topic; "
        f"{OWN}: devices/ID/inbox/trigger.",
        show_default="always",
    ),
    setting(
        "--on-payload",
        metavar="TEXT",
        help="Text that a message on --on-topic must have to count.",
        show_default="anything",
    ),
    setting(
        "--on-topic-for",
        type=number(0, 86400),
        default=5.0,
        metavar="SECONDS",
        help="How long images are classified after a message on --on-topic, in seconds; 0: one image.",
    ),
    setting(
        "--on-change",
        type=number(0, 1),
        metavar="SHARE",
        help="Classify only images that differ from the last classified one by more than this share of the "
        "full scale of brightness, on average.",
        show_default="all",
    ),
    setting(
        "--backlog",
        type=whole(0, 100_000),
        metavar="COUNT",
        help="Largest number of images that wait; if more come, the oldest are dropped. 0: none is dropped, "
        "the folder or stream waits.",
        show_default=f"{ROOM}; 0 for --watch",
    ),
)


def capture_options(
    watch: Path | None,
    existing: bool,
    watch_poll: float | None,
    camera: bool,
    stdin: bool,
    every: float,
    on_topic: str | None,
    on_payload: str | None,
    on_topic_for: float,
    on_change: float | None,
    backlog: int | None,
) -> CaptureOptions:
    """The options that the flags give. Raises ConfigError: they do not fit together."""
    given = [
        flag
        for flag, is_given in (("--watch FOLDER", watch), ("--camera", camera), ("--stdin", stdin))
        if is_given
    ]
    if len(given) > 1:
        raise ConfigError(f"give one of --watch FOLDER, --camera and --stdin, not {' and '.join(given)}")
    if existing and watch is None:
        raise ConfigError("--existing needs --watch FOLDER: give both, or neither")
    require("--watch", watch is not None, "--watch-poll")
    require("--camera or --stdin", camera or stdin, "--every", "--on-topic")
    require("--on-topic", on_topic is not None, "--on-payload", "--on-topic-for")
    require("--watch, --camera or --stdin", bool(given), "--on-change", "--backlog")
    if on_payload is not None and len(on_payload) > LONGEST_PAYLOAD:
        raise ConfigError(
            f"--on-payload: expected at most {LONGEST_PAYLOAD} characters, got {len(on_payload)}"
        )
    return CaptureOptions(
        watch,
        existing,
        watch_poll,
        camera,
        stdin,
        every,
        on_topic,
        on_payload,
        on_topic_for,
        on_change,
        backlog,
    )
