# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the documentation as SVG, for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "docs" / "drawings"
LIGHT = """.page { fill: #ffffff } text { fill: #1f2328 } .small { fill: #59636e } .line { stroke: #59636e }
.arrow { fill: #59636e } .box { fill: #f6f8fa; stroke: #818b98 } .phase { fill: #0969da14; stroke: #0969da55 }
.device { fill: #ddf4ff; stroke: #0969da } .server { fill: #fff1e5; stroke: #bc4c00 }
"""
DARK = """.page { fill: #0d1117 } text { fill: #f0f6fc } .small { fill: #9198a1 } .line { stroke: #9198a1 }
.arrow { fill: #9198a1 } .box { fill: #151b23; stroke: #656c76 } .phase { fill: #4493f81f; stroke: #4493f866 }
.device { fill: #121d2f; stroke: #4493f8 } .server { fill: #221a19; stroke: #db6d28 }
"""
BOTH = f"{LIGHT}@media (prefers-color-scheme: dark) {{\n{DARK}}}\n"
SHAPES = """text { font: 14px system-ui, sans-serif }
.small { font-size: 12px } .head { font-weight: 600 } .line { fill: none } .dashed { stroke-dasharray: 4 4 }
"""
TIP = """<defs>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path class="arrow" d="M0 0 8 4 0 8z"/></marker></defs>
"""
ROW = 34  # pixels between two rows
LANE = 520  # pixels between two lanes


@dataclass(frozen=True)
class Send:
    """A message from the left lane to the right one, or `back`; `lost`: it does not arrive."""

    text: str
    back: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Note:
    """An action of one side; `at`: 0 is the left lane, 1 the right one."""

    text: str
    at: int


@dataclass(frozen=True)
class Group:
    """A named group of rows."""

    text: str
    rows: Sequence[Send | Note]


Row = Send | Note | Group
BATCH: Sequence[Row] = (
    Send("features: step 0"),
    Send("features: step 1"),
    Send("features: step 2", lost=True),
    Note("the window is full: the device waits", 0),
    Note("trains step 0, then step 1", 1),
    Send("ack: step 2, room 3", back=True),
    Send("features: step 3"),
    Note("step 3 waits for its turn", 1),
    Note("reconnected, or 15 s without a word", 0),
    Send("sync"),
    Send("ack: step 2, room 3, resend", back=True),
    Send("features: step 2"),
    Send("features: step 3"),
    Note("trains 2 and 3; the second step 3 is dropped", 1),
    Send("ack: step 4, room 3", back=True),
)
ROUND: Sequence[Row] = (
    Send("run (retained)", back=True),
    Send("status: online (retained)"),
    Send("profile: cut, classes, images (retained)"),
    Send("inbox/plan: taken in (retained)", back=True),
    Group(
        "train",
        (
            Send("inbox/participation: steps, base, room (retained)", back=True),
            Send("round: 1, train (retained)", back=True),
            Send("features: step 0 ... steps - 1"),
            Send("inbox/ack", back=True),
            Note("saves durably, where nothing is averaged", 0),
            Send("weights, where they are averaged"),
            Send("round-done: digest"),
            Note("averages, saves durably", 1),
            Send("inbox/plan: committed, digest (retained)", back=True),
            Send("commit: 1 (retained)", back=True),
            Send("sync: weights, where they are averaged"),
            Send("inbox/weights", back=True),
        ),
    ),
    Group(
        "statistics, where networks are averaged",
        (
            Send("inbox/participation, round: 1, statistics (retained)", back=True),
            Send("features: step 0 ... steps - 1"),
            Send("weights: BatchNorm's; round-done"),
            Note("averages, saves durably", 1),
            Send("inbox/plan: committed, fresh, digest (retained)", back=True),
            Send("sync: weights"),
            Send("inbox/weights: BatchNorm's", back=True),
            Note("saves durably", 0),
        ),
    ),
    Group(
        "evaluate",
        (
            Send("inbox/participation, round: 1, evaluate (retained)", back=True),
            Send("features, exit_labels, exit_entropy: step 0 ... steps - 1"),
            Send("inbox/ack", back=True),
        ),
    ),
    Send("round: 2, train ... finished (retained)", back=True),
)


def sequence(lanes: tuple[str, str], rows: Sequence[Row]) -> str:
    """A sequence diagram: the messages between two sides, from top to bottom."""
    left, right, top = 170, 170 + LANE, 52
    parts, bottom = _rows(rows, left, right, top)
    lines = [f'<path class="line dashed" d="M{x} 36V{bottom}"/>' for x in (left, right)]
    heads = [_box(x - 70, 6, 140, 30, (name,)) for x, name in zip((left, right), lanes, strict=True)]
    return _svg(right + 170, bottom + 8, [*lines, *parts, *heads])


def _rows(rows: Sequence[Row], left: int, right: int, y: int) -> tuple[list[str], int]:
    parts: list[str] = []
    for row in rows:
        if isinstance(row, Group):
            inner, below = _rows(row.rows, left, right, y + 22)
            frame = f'<rect class="phase" x="12" y="{y}" width="{right + 146}" height="{below - y}" rx="6"/>'
            parts += [frame, _text(22, y + 18, row.text, "head"), *inner]
            y = below + 12
        elif isinstance(row, Note):
            parts.append(_note(row, right if row.at else left, y))
            y += ROW
        else:
            parts += _arrow(row, left, right, y)
            y += ROW
    return parts, y


def _note(note: Note, x: int, y: int) -> str:
    width = 16 + round(6.6 * len(note.text))
    start = x - width + 60 if note.at else x - 60
    return _box(start, y + 4, width, 24, (note.text,), "small")


def _arrow(send: Send, left: int, right: int, y: int) -> Iterator[str]:
    middle = (left + right) // 2
    start, end = (right, left) if send.back else (left, right)
    if send.lost:
        end = middle + 120
        yield f'<path class="line" d="M{end - 5} {y + 20}l10 10m0-10-10 10"/>'
    tip = "" if send.lost else ' marker-end="url(#tip)"'
    yield f'<path class="line" d="M{start} {y + 25}H{end}"{tip}/>'
    yield _text(middle, y + 19, send.text, "", "middle")


@dataclass(frozen=True)
class Box:
    """A box with a name and a description."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]


FRAMES = (Box(10, 10, 250, 330, ("device: one of many, unequal",)), Box(620, 10, 300, 330, ("server",)))
BOXES = (
    Box(30, 50, 210, 44, ("images", "they never leave the device")),
    Box(30, 120, 210, 44, ("stages 1 ... cut", "trained by their own exit's loss")),
    Box(30, 190, 210, 44, ("exit", "predicts when it is certain")),
    Box(30, 280, 210, 44, ("state", "saved durably, once a round")),
    Box(375, 110, 130, 130, ("broker", "Mosquitto", "TLS, access list")),
    Box(640, 50, 260, 44, ("gate and order", "each batch once, in a fixed order")),
    Box(640, 120, 260, 44, ("trunk: stages cut + 1 ... L", "Sequential: one; Averaging: one a device")),
    Box(640, 190, 260, 44, ("averages", "layer by layer, weighted by images")),
    Box(640, 280, 260, 44, ("commit", "saved durably, then announced")),
)
FLOWS = (  # from x, y to x, y
    (135, 94, 135, 120),
    (135, 164, 135, 190),
    (770, 94, 770, 120),
    (770, 164, 770, 190),
    (770, 234, 770, 280),
    (240, 142, 375, 142),
    (505, 142, 640, 72),
    (640, 302, 505, 222),
    (375, 222, 240, 302),
)
LABELS = ((317, 132, "features, labels"), (365, 302, "acks, commits, averages"))


def architecture() -> str:
    """The path of a batch from an image to a commit."""
    boxes = [_box(b.x, b.y, b.width, b.height, b.lines, top=True) for b in FRAMES]
    boxes += [_box(b.x, b.y, b.width, b.height, b.lines) for b in BOXES]
    arrows = [f'<path class="line" d="M{x} {y} {u} {v}" marker-end="url(#tip)"/>' for x, y, u, v in FLOWS]
    texts = [_text(x, y, text, "small", "middle") for x, y, text in LABELS]
    return _svg(930, 350, [*boxes, *arrows, *texts])


STAGES = 6  # number of stages of the overview's network
STAGE = 38  # pixels: side of a stage
PITCH = 50  # pixels between the left sides of two stages
TRUNK = (590, 146)  # x, y of its first stage
ROWS = ((32, 4, "strong device"), (132, 1, "weak device"), (232, 2, "another device"))  # y, cut, name


def overview(colours: str = BOTH) -> str:
    """Unequal devices, a broker, and the trunk, which learns from all devices."""
    parts = [
        _box(570, 20, 280, 300, ("server",), top=True),
        _box(450, 20, 90, 300, ("MQTT", "broker"), top=True),
    ]
    for y, cut, name in ROWS:
        parts += _device(y, cut, name)
    x, y = TRUNK
    for stage in range(2, STAGES + 1):
        parts.append(_stage(x + PITCH * (stage - 2), y, str(stage), "server"))
    parts.append(_text(710, 64, "trunk: trained on the features of all devices,", "small", "middle"))
    parts.append(_text(710, 82, "no gradient goes back to them", "small", "middle"))
    return _svg(862, 340, parts, colours)


def _device(y: int, cut: int, name: str) -> Iterator[str]:
    """A device with its stages and exit, and the path of its features into the trunk."""
    yield _box(10, y - 12, 410, 92, ())
    yield _text(24, y + 8, f"{name}, cut {cut}", "head")
    yield _box(24, y + 14, 74, STAGE + 4, ("images", "stay here"), "small")
    for stage in range(1, cut + 1):
        yield _stage(70 + PITCH * stage, y + 16, str(stage), "device")
    last = 70 + PITCH * cut
    yield _line(f"M98 {y + 35}H118")
    yield _box(last + STAGE + 20, y + 16, 52, STAGE, ("exit",), "small")
    yield _line(f"M{last + STAGE} {y + 35}H{last + STAGE + 18}")
    path_y = y + 71
    entry, top = TRUNK[0] + PITCH * (cut - 1) + STAGE // 2, TRUNK[1]
    into = f"V{top - 2}" if path_y < top else f"V{top + STAGE + 2}"
    yield _line(f"M{last + STAGE // 2} {y + 16 + STAGE}V{path_y}H{entry}{into}")
    yield _text(412, path_y - 4, "features, labels", "small", "end")


def _stage(x: int, y: int, text: str, style: str) -> str:
    shape = f'<rect class="{style}" x="{x}" y="{y}" width="{STAGE}" height="{STAGE}" rx="5"/>'
    return shape + _text(x + STAGE / 2, y + STAGE / 2 + 5, text, "head", "middle")


def _line(path: str) -> str:
    return f'<path class="line" d="{path}" marker-end="url(#tip)"/>'


def _box(
    x: int, y: int, width: int, height: int, lines: Sequence[str], style: str = "", *, top: bool = False
) -> str:
    """A box with text in its middle or at its `top`: the first line is the name, the others are small."""
    middle = x + width / 2
    first = y + 20 if top else y + height / 2 + 5 - 9 * (len(lines) - 1)
    texts = [
        _text(middle, first + 18 * index, line, style or ("head" if index == 0 else "small"), "middle")
        for index, line in enumerate(lines)
    ]
    return f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>' + "".join(texts)


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], colours: str = BOTH) -> str:
    """An SVG file with its own background, readable on a page of any colour."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    background = f'<rect class="page" width="{width}" height="{height}" rx="8"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>\n{SHAPES}{colours}</style>\n{TIP}'
    return "\n".join([head + background, *parts, "</svg>\n"])


def drawings() -> dict[str, str]:
    """The texts of the SVG files, by name."""
    return {
        "architecture.svg": architecture(),
        "batch.svg": sequence(("device", "server"), BATCH),
        "overview.svg": overview(),
        "overview-light.svg": overview(LIGHT),
        "overview-dark.svg": overview(DARK),
        "round.svg": sequence(("device", "server"), ROUND),
    }
