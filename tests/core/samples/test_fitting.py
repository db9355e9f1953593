# SPDX-License-Identifier: Apache-2.0
"""Fitting of images: crop, pad, stretch and regions give the same pixels for all file types."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from splitee.errors import ConfigError, DataError
from splitee.samples.fitting import GREY, Preparation, Region, from_array, upright_size
from splitee.samples.images import IMAGE_SUFFIXES, UnreadableImage, load_image

HALVES = np.repeat(np.array([[10, 200]], np.uint8), 30, axis=1).repeat(20, axis=0)  # 60 x 20, dark and bright


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int, height: int) -> np.ndarray:
    """An image without detail, in which every pixel has a colour of its own."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([across, down, 255 - across], axis=2).astype(np.uint8)


def test_crop_keeps_the_middle_of_an_image() -> None:
    fitted = from_array(HALVES, Preparation((1, 20, 20), "crop"))[0]
    assert np.array_equal(fitted, HALVES[:, 20:40])


def test_stretch_keeps_the_whole_image() -> None:
    fitted = from_array(HALVES, Preparation((1, 20, 20), "stretch"))[0]
    assert np.all(fitted[:, :9] == 10)
    assert np.all(fitted[:, 11:] == 200)


@pytest.mark.parametrize("lying", [False, True])
def test_pad_keeps_the_whole_image_between_grey_margins(lying: bool) -> None:
    pixels = HALVES if not lying else HALVES.T
    fitted = from_array(pixels, Preparation((3, 30, 30), "pad"))
    assert np.array_equal(fitted[0], fitted[2])
    upright = fitted[0] if not lying else fitted[0].T
    assert np.all(upright[:10] == GREY)
    assert np.all(upright[20:] == GREY)
    assert np.all(upright[10:20, :14] == 10)
    assert np.all(upright[10:20, 16:] == 200)


def test_transparent_image_is_padded_with_grey_and_becomes_white() -> None:
    clear = np.zeros((10, 20, 4), np.uint8)
    fitted = load_image(encoded(clear), Preparation((3, 20, 20), "pad"))
    assert np.all(fitted[:, :5] == GREY)
    assert np.all(fitted[:, 5:15] == 255)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_very_long_image_does_not_vanish_when_fitted(fit: str) -> None:
    fitted = from_array(np.full((2, 1000), 9, np.uint8), Preparation((1, 16, 16), fit))  # type: ignore[arg-type]
    assert (fitted == 9).any()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_region_equals_an_image_cut_to_it(fit: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    region = Region(7, 5, 31, 22)
    whole = Preparation((3, 16, 24), fit)  # type: ignore[arg-type]
    part = Preparation((3, 16, 24), fit, region)  # type: ignore[arg-type]
    cut_out = pixels[5:27, 7:38]
    assert np.array_equal(load_image(encoded(pixels), part), from_array(cut_out, whole))


def test_region_refers_to_the_upright_image() -> None:
    upright = smooth(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(np.rot90(upright), exif=exif)
    preparation = Preparation((3, 10, 20), region=Region(20, 50, 20, 10))
    assert np.array_equal(load_image(lying, preparation), from_array(upright, preparation))


@pytest.mark.parametrize("turned", [False, True])
def test_region_of_a_large_jpeg_is_close_to_that_at_full_size(turned: bool) -> None:
    """The image is decoded at a quarter of its size; the region's corners move by less than a pixel there."""
    upright = smooth(1603, 1201)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    jpeg = encoded(np.rot90(upright) if turned else upright, "JPEG", quality=95, exif=exif)
    preparation = Preparation((3, 32, 32), region=Region(901, 333, 600, 500))
    difference = load_image(jpeg, preparation).astype(int) - from_array(upright, preparation)
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_image_smaller_than_the_region_is_refused_by_name(kind: str) -> None:
    preparation = Preparation((3, 8, 8), region=Region(10, 0, 31, 20))
    with pytest.raises(UnreadableImage, match=r"^few\.png: .*40 x 30 .*too few for the region 10,0,31,20"):
        load_image(encoded(smooth(40, 30), kind), preparation, name="few.png")
    assert load_image(encoded(smooth(41, 20), kind), preparation).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_image_one_pixel_wide_or_high_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage, match=f"{size[0]} x {size[1]} pixels: too few for an image"):
        load_image(encoded(np.zeros(size[::-1], np.uint8)), Preparation((1, 8, 8)))


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "-1,0,5,5", "0,0,1,9", "0,0,9,x", "1.5,0,9,9", "1,,3,4,5"]
)
def test_invalid_region_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a region as X,Y,W,H"):
        Region.parse(text)


def test_region_is_parsed_from_its_own_text() -> None:
    region = Region(320, 0, 640, 480)
    assert Region.parse(str(region)) == Region.parse(" 320, 0,640 ,480") == region


def test_preparation_for_2_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 channel .* or 3"):
        Preparation((2, 4, 4))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "AVIF"])
def test_size_and_pixels_are_those_of_the_upright_image(kind: str) -> None:
    if kind == "AVIF" and ".avif" not in IMAGE_SUFFIXES:
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = encoded(smooth(24, 10), kind, exif=exif)
    assert load_image(turned, upright_size) == (10, 24)
    left = load_image(turned, Preparation((3, 24, 10)))
    assert np.abs(left.astype(int) - np.rot90(smooth(24, 10)).transpose(2, 0, 1)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_image_size_is_read_from_the_header(kind: str) -> None:
    whole = encoded(np.random.default_rng(1).integers(0, 256, (300, 200, 3), np.uint8), kind)
    assert load_image(whole[: len(whole) // 2], upright_size) == (200, 300)
