# SPDX-License-Identifier: Apache-2.0
"""Images are decoded alike from all file types, and files that cannot be decoded are named."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from splitee.errors import DataError
from splitee.samples.fitting import Preparation, from_array
from splitee.samples.images import IMAGE_SUFFIXES, UnreadableImage, load_image, normalize


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_image_of_the_wanted_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = noise(8, 12, 3)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(load_image(path, Preparation((3, 8, 12))), pixels.transpose(2, 0, 1))
    assert np.array_equal(load_image(path.read_bytes(), Preparation((3, 8, 12))), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
def test_files_and_arrays_give_the_same_pixels(layout: tuple[int, ...], channels: int) -> None:
    pixels = noise(*layout)
    image = Image.fromarray(pixels[:, :, 0] if layout[2:] == (1,) else pixels)
    shape = (channels, 9, 7)
    fitted = from_array(pixels, Preparation(shape))
    assert fitted.shape == shape
    assert fitted.dtype == np.uint8
    assert np.array_equal(fitted, load_image(encoded(image), Preparation(shape)))


def test_oblong_image_is_cropped_to_its_middle() -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    assert np.array_equal(from_array(pixels, Preparation((1, 10, 10))), np.full((1, 10, 10), 200))


def test_exif_orientation_turns_the_image_upright() -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8] = 255  # the upper half is bright
    lying = Image.fromarray(np.rot90(upright))  # as stored by a camera that was turned to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(load_image(encoded(lying, exif=exif), Preparation((1, 16, 16)))[0], upright)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_become_white(mode: str, channels: int) -> None:
    clear_above = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    clear_above.paste((90, 90, 90, 0), (0, 0, 8, 4))
    image = load_image(encoded(clear_above.convert(mode)), Preparation((channels, 8, 8)))
    assert np.all(image[:, :4] == 255)
    assert np.all(image[:, 4:] == 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_image_keeps_its_upper_byte(kind: str) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert np.array_equal(
        load_image(encoded(Image.fromarray(deep), kind), Preparation((1, 8, 8)))[0], deep >> 8
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_image_of_every_mode_is_converted_to_rgb(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    converted = load_image(encoded(image, "TIFF"), Preparation((3, 8, 8)))
    assert np.all(converted >= 250)


def test_large_jpeg_is_close_to_the_image_resized_from_full_size() -> None:
    smooth = Image.fromarray(noise(6, 8, 3)).resize((800, 600), Image.Resampling.BICUBIC)
    jpeg = encoded(smooth, "JPEG", quality=95)
    with Image.open(io.BytesIO(jpeg)) as whole:
        expected = from_array(np.asarray(whole), Preparation((3, 32, 32)))
    difference = np.abs(load_image(jpeg, Preparation((3, 32, 32))).astype(int) - expected)
    assert difference.mean() < 0.5
    assert difference.max() <= 4


def test_normalize_follows_the_formula() -> None:
    images = noise(4, 3, 5, 6)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    column = (1, 3, 1, 1)
    expected = (images / 255 - np.reshape(mean, column)) / np.reshape(std, column)
    normalized = normalize(images, mean, std)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, atol=1e-6)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [7072, 10_000, 60_000])
@pytest.mark.filterwarnings("error")
def test_image_of_too_many_pixels_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(UnreadableImage, match=r"^bomb\.png: .*pixels"):
        load_image(png_header(side, side), Preparation((3, 8, 8)), name="bomb.png")


MEASURE = """
import resource, sys
from pathlib import Path
from splitee.samples.fitting import Preparation
from splitee.samples.images import load_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
load_image(Path(sys.argv[1]), Preparation((3, 32, 32)))
print(peak() - before)
"""


def test_large_image_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    """Memory depends on the pixels, not on the file's size. A fifth of the maximum keeps the test short."""
    Image.new("RGB", (4_000, 2_500)).save(tmp_path / "large.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 55_000  # KB for 10 million pixels of 4 bytes


def test_png_with_too_much_text_is_refused() -> None:
    texts = PngImagePlugin.PngInfo()
    for number in range(100):
        texts.add_text(f"text {number}", "x" * 500_000, zip=True)
    bomb = encoded(Image.new("L", (8, 8)), pnginfo=texts)
    assert len(bomb) < 200_000
    with pytest.raises(UnreadableImage, match="memory used in text chunks"):
        load_image(bomb, Preparation((1, 8, 8)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("L", (8, 8), 255 * (number == 0)).convert("RGB") for number in range(50)]
    animation = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.all(load_image(animation, Preparation((1, 8, 8))) >= 250)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to a device"])
def test_path_that_is_not_a_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "fifo":
        os.mkfifo(path)  # opening it would wait for a writer
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UnreadableImage, match="got no regular file"):
        load_image(path, Preparation((3, 8, 8)))


def test_link_to_an_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encoded(Image.new("L", (8, 8), 7)))
    (tmp_path / "link.png").symlink_to("image.png")
    assert np.all(load_image(tmp_path / "link.png", Preparation((1, 8, 8))) == 7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_truncated_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(noise(40, 40, 3)), kind)
    path = tmp_path / "half"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match="half: expected an image") as caught:
        load_image(path, Preparation((3, 8, 8)))
    assert caught.value.name == str(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_content_that_is_not_an_image_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match="got something else"):
        load_image(content, Preparation((3, 8, 8)))


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.png: .*no such file"):
        load_image(tmp_path / "gone.png", Preparation((3, 8, 8)))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_array_that_is_not_an_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected an image as uint8"):
        from_array(array, Preparation((3, 8, 8)))


def test_images_module_does_not_import_torch() -> None:
    check = "import sys, splitee.samples.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_avif_is_read_if_pillow_supports_it(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    assert ".avif" in IMAGE_SUFFIXES
    path = tmp_path / "image.avif"
    path.write_bytes(encoded(Image.new("RGB", (16, 16), (200, 200, 200)), "AVIF"))
    assert np.abs(load_image(path, Preparation((3, 8, 8))).astype(int) - 200).max() <= 2


@pytest.mark.skipif(".heic" in IMAGE_SUFFIXES, reason="pillow-heif is installed")
@pytest.mark.parametrize(("major", "brand"), [(b"heic", b"mif1"), (b"mif1", b"heic")])
def test_heic_is_named_if_pillow_heif_is_missing(major: bytes, brand: bytes) -> None:
    heic = struct.pack(">I4s4sI4s4s", 24, b"ftyp", major, 0, b"mif1", brand) + bytes(40)
    with pytest.raises(UnreadableImage, match="got HEIC, which is read where pillow-heif is installed"):
        load_image(heic, Preparation((3, 8, 8)))
