"""Draws what the documents show, as SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "docs" / "drawings"
STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 12px; fill: #59636e }
.head { font-weight: 600 }
.line { stroke: #59636e; fill: none }
.dashed { stroke-dasharray: 4 4 }
.box { fill: #f6f8fa; stroke: #818b98 }
.phase { fill: #0969da14; stroke: #0969da55 }
.arrow { fill: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .small { fill: #9198a1 } .line { stroke: #9198a1 } .arrow { fill: #9198a1 }
.box { fill: #151b23; stroke: #656c76 } .phase { fill: #4493f81f; stroke: #4493f866 } }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path class="arrow" d="M0 0 8 4 0 8z"/></marker></defs>
"""
ROW = 34  # pixels between two rows
LANE = 520  # pixels between two lanes


@dataclass(frozen=True)
class Send:
    """An arrow from the lane `left` to `right`, or back; `lost`: it does not arrive."""

    text: str
    back: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Note:
    """What one side does; `at`: 0 is the left lane, 1 the right one."""

    text: str
    at: int


@dataclass(frozen=True)
class Group:
    """Rows that belong together, with their name."""

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
            Send("round: 1, train, participants (retained)", back=True),
            Send("features: step 0 ... steps - 1"),
            Send("inbox/ack", back=True),
            Note("saves durably, where nothing is averaged", 0),
            Send("weights, where they are averaged"),
            Send("round-done: digest"),
            Note("averages, saves durably", 1),
            Send("inbox/plan: committed, digest (retained)", back=True),
            Send("commit: 1, digests (retained)", back=True),
            Send("sync: weights, where they are averaged"),
            Send("inbox/weights", back=True),
        ),
    ),
    Group(
        "statistics, where networks are averaged",
        (
            Send("round: 1, statistics, participants (retained)", back=True),
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
            Send("round: 1, evaluate, participants (retained)", back=True),
            Send("features, exit_labels, exit_entropy: step 0 ... steps - 1"),
            Send("inbox/ack", back=True),
        ),
    ),
    Send("round: 2, train ... finished (retained)", back=True),
)


def sequence(lanes: tuple[str, str], rows: Sequence[Row]) -> str:
    """Two sides and what they send each other, from top to bottom."""
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
    """A thing with its name and what it does."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]


FRAMES = (Box(10, 10, 250, 330, ("device: one of many, unequal",)), Box(620, 10, 300, 330, ("server",)))
BOXES = (
    Box(30, 50, 210, 44, ("images", "they never leave the device")),
    Box(30, 120, 210, 44, ("stages 1 ... cut", "trained by their own exit's loss")),
    Box(30, 190, 210, 44, ("exit", "predicts when it is sure")),
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
    """The way of a batch from an image to a commit."""
    boxes = [_box(b.x, b.y, b.width, b.height, b.lines, top=True) for b in FRAMES]
    boxes += [_box(b.x, b.y, b.width, b.height, b.lines) for b in BOXES]
    arrows = [f'<path class="line" d="M{x} {y} {u} {v}" marker-end="url(#tip)"/>' for x, y, u, v in FLOWS]
    texts = [_text(x, y, text, "small", "middle") for x, y, text in LABELS]
    return _svg(930, 350, [*boxes, *arrows, *texts])


def _box(
    x: int, y: int, width: int, height: int, lines: Sequence[str], style: str = "", *, top: bool = False
) -> str:
    """The first line is the name, the others are small; in the middle, or at the `top`."""
    middle = x + width / 2
    first = y + 20 if top else y + height / 2 + 5 - 9 * (len(lines) - 1)
    texts = [
        _text(middle, first + 18 * index, line, style or ("head" if index == 0 else "small"), "middle")
        for index, line in enumerate(lines)
    ]
    return f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>' + "".join(texts)


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{STYLE}' + "\n".join(parts) + "\n</svg>\n"


def drawings() -> dict[str, str]:
    """The drawings' files, by name."""
    return {
        "architecture.svg": architecture(),
        "batch.svg": sequence(("device", "server"), BATCH),
        "round.svg": sequence(("device", "server"), ROUND),
    }
