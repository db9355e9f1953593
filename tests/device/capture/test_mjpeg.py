# SPDX-License-Identifier: Apache-2.0
"""A Motion JPEG stream is split into its images, in pieces of any size; invalid data is skipped."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitee_device.capture.mjpeg import Splitter

GENERATOR = np.random.default_rng(0)


def jpeg(size: tuple[int, int] = (40, 30), thumbnail: bytes = b"", **how: object) -> bytes:
    """A JPEG file of noise, whose scan has many bytes 0xff."""
    exif = b"Exif\0\0" + thumbnail if thumbnail else b""
    file = io.BytesIO()
    pixels = GENERATOR.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif, **how)
    return file.getvalue()


SMALL = jpeg()
IMAGES = {
    "baseline": SMALL,
    "large": jpeg((120, 90)),
    "progressive": jpeg((200, 100), progressive=True),
    "with a thumbnail": jpeg(thumbnail=SMALL),
    "with restarts": jpeg((64, 64), restart_marker_blocks=2),
}


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
def test_stream_in_pieces_of_any_size_is_split_into_its_images(piece: int) -> None:
    stream = b"".join(IMAGES.values())
    splitter = Splitter()
    found = [
        image
        for start in range(0, len(stream), piece)
        for image in splitter.feed(stream[start : start + piece])
    ]
    assert found == list(IMAGES.values())
    assert splitter.broken == 0


@pytest.mark.parametrize(
    "between",
    [b"words", b"\xff\xd8\xff" * 5, b"\xff", b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n", SMALL[:700]],
)
def test_bytes_between_images_are_skipped(between: bytes) -> None:
    found = Splitter().feed(SMALL + between + IMAGES["large"] + SMALL)
    assert found[0] == found[-1] == SMALL
    assert IMAGES["large"] in found


def test_oversized_image_is_skipped_and_not_kept_in_memory() -> None:
    splitter = Splitter(largest=10_000)
    endless = SMALL[:-2] + b"x" * 100_000
    for start in range(0, len(endless), 5000):
        assert splitter.feed(endless[start : start + 5000]) == []
        assert splitter.held <= 15_000
    assert splitter.broken
    assert splitter.feed(SMALL) == [SMALL]


@given(st.lists(st.one_of(st.binary(max_size=300), st.sampled_from([SMALL, b"\xff\xd8\xff\xda\0\2"]))))
@settings(max_examples=200, deadline=None)
def test_splitter_bounds_its_buffer_and_recovers_after_any_input(pieces: list[bytes]) -> None:
    splitter = Splitter(largest=5000)
    for piece in pieces:
        splitter.feed(piece)
        assert splitter.held <= 5000 + len(piece)
    assert SMALL in [*splitter.feed(b"x" * 5001), *splitter.feed(SMALL)]
