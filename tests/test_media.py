"""Decoders: what comes out is right, and what is broken, huge or foreign is refused in one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from centrobind.data import Limits, decode_image, decode_npy, decode_series, decode_text, media
from centrobind.errors import DataError
from chaos.process import python


def saved(picture, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def halves(width=80, height=40):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_pictures_of_every_kind_come_out_in_the_stated_shape(kind):
    found = decode_image(saved(halves(), kind), (10, 20, 3))
    assert found.shape == (10, 20, 3) and found.dtype == np.uint8
    assert (abs(found[5, 2].astype(int) - [255, 0, 0]) < 30).all()
    assert (abs(found[5, 17].astype(int) - [0, 0, 255]) < 30).all()


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(pixels)))
    assert np.array_equal(decode_image(tmp_path / "a.png", (6, 7, 3)), pixels)
    assert np.array_equal(decode_image(saved(Image.fromarray(pixels[..., 0])), (6, 7)), pixels[..., 0])
    assert np.array_equal(decode_image(saved(Image.fromarray(pixels[..., 0])), (6, 7, 1))[..., 0], pixels[..., 0])


def test_the_middle_is_kept_when_proportions_differ():
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    assert (decode_image(saved(Image.fromarray(pixels)), (10, 10)) == 200).all()


def test_a_picture_is_turned_upright_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    found = decode_image(saved(halves(40, 40), "JPEG", exif=exif), (20, 20, 3))
    assert found[2, 10, 0] > 200 and found[17, 10, 2] > 200


def test_transparent_is_white_unless_alpha_is_asked_for():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode_image(saved(clear), (4, 4, 3)) == 255).all()
    assert (decode_image(saved(clear), (4, 4, 4))[..., 3] == 0).all()
    assert (decode_image(saved(Image.new("LA", (8, 8), (0, 0))), (4, 4)) == 255).all()


def test_sixteen_bits_are_scaled_not_cut():
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    found = decode_image(saved(Image.fromarray(pixels)), (8, 8))
    assert np.array_equal(found, (pixels / 257).round().astype(np.uint8))


PICTURES = {
    "grey of 16 bits": lambda pixels: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + pixels[..., 1]),
    "colour and alpha": lambda pixels: Image.fromarray(pixels, "RGBA"),
    "grey and alpha": lambda pixels: Image.fromarray(pixels[..., :2].copy(), "LA"),
    "a palette": lambda pixels: Image.fromarray(pixels, "RGBA").convert("RGB").quantize(16),
    "bits": lambda pixels: Image.fromarray(pixels[..., 0]).convert("1"),
    "print colours": lambda pixels: Image.fromarray(pixels, "CMYK"),
}


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_conversion_by_strips_is_that_of_the_whole(kind, mode, monkeypatch):
    """The literal twin converts the whole picture at once; turned by its EXIF in both."""
    picture = PICTURES[kind](np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8))
    twin = picture
    if twin.mode.startswith("I;16"):
        twin = Image.fromarray((np.array(twin) / 257).round().astype(np.uint8))
    if mode != "RGBA" and twin.mode in ("RGBA", "LA"):
        twin = Image.alpha_composite(Image.new("RGBA", twin.size, "white"), twin.convert("RGBA"))
    twin = twin.convert(mode).transpose(Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(picture, "TIFF" if picture.mode == "CMYK" else "PNG", exif=exif)
    shape = (23, 37) if mode == "L" else (23, 37, len(mode))
    for strip in (23 * 5, 1, 2**20):
        monkeypatch.setattr(media, "STRIP", strip)
        assert np.array_equal(decode_image(content, shape), np.asarray(twin).reshape(shape)), strip


PEAK = """
import io, sys
import numpy as np
from PIL import Image
from centrobind.data import decode_image
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
kinds = {"16": lambda: np.zeros((5000, 5000), np.uint16), "RGBA": lambda: np.zeros((5000, 5000, 4), np.uint8)}
file = io.BytesIO()
Image.fromarray(kinds[sys.argv[1]]()).save(file, "PNG")
del kinds
content = file.getvalue()
decode_image(content[:0] + (lambda b: (Image.new("L", (4, 4)).save(b, "PNG"), b.getvalue())[1])(io.BytesIO()), (4, 4))
open("/proc/self/clear_refs", "w").write("5")
before = peak()
decode_image(content, (32, 32))
print(peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to measure a peak")
@pytest.mark.parametrize(("kind", "bytes_a_pixel"), [("16", 2), ("RGBA", 4)])
def test_a_small_file_of_many_pixels_takes_little_beyond_its_pixels(kind, bytes_a_pixel):
    pixels = 25_000_000 * bytes_a_pixel / 2**20
    assert float(python("-c", PEAK, kind)) < 1.6 * pixels + 40


def promise(width, height):
    """A PNG of a few bytes whose header promises that many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))]
    body = b"IDAT" + zlib.compress(b"\0" * 1000)
    return b"".join([*parts, struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"hello", "not a picture of a kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a kind"),
        (saved(noise())[:1500], "a broken picture"),
        (saved(halves(), "JPEG")[:400], "a broken picture"),
        (promise(8000, 8000), "8000 x 8000 pixels, more than the 50,000,000"),
        (promise(60_000, 60_000), "more pixels than the 50,000,000"),
        (promise(100, 100), "a broken picture"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "32-bit pixels"),
    ],
)
def test_pictures_that_are_refused(content, says):
    with pytest.raises(DataError, match=says) as caught:
        decode_image(content, (8, 8, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8,), (8, 8, 2), (0, 8), (8, 8, 3, 1)])
def test_shapes_no_picture_has_are_refused(shape):
    with pytest.raises(DataError, match="a picture has shape"):
        decode_image(saved(halves()), shape)


def test_limits_are_the_callers(tmp_path):
    with pytest.raises(DataError, match="80 x 40 pixels, more than the 100 that"):
        decode_image(saved(halves()), limits=Limits(pixels=100))
    with pytest.raises(DataError, match="more than the 20 bytes"):
        decode_image(saved(halves()), limits=Limits(bytes=20))
    with pytest.raises(DataError, match="12 numbers, expected 1 to 10"):
        decode_series(npy(np.ones((4, 3))), limits=Limits(numbers=10))
    with pytest.raises(DataError, match="about 12 numbers"):
        decode_series(b"1,2,3\n4,5,6\n" * 2, limits=Limits(numbers=10))
    with pytest.raises(DataError, match="11 characters, more than the 10"):
        decode_text(b"hello there", limits=Limits(characters=10))
    (tmp_path / "big").write_bytes(b"x" * 21)
    with pytest.raises(DataError, match="more than the 20 bytes"):
        decode_text(tmp_path / "big", limits=Limits(bytes=20))


def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "not an ordinary file"),
        (tmp_path, "not an ord"),
        (tmp_path / "no", "no such"),
    ):
        with pytest.raises(DataError, match=says):
            decode_text(path)
    with pytest.raises(DataError):
        decode_text("a\0b")


def test_a_series_from_npy_and_from_csv_is_the_same():
    values = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    written = "\n".join(",".join(map(repr, row)) for row in values.astype(float).tolist())
    for content in (
        npy(values),
        npy(np.asfortranarray(values)),
        written,
        "x,y,z\n" + written,
        written.replace(",", ";"),
    ):
        content = content if isinstance(content, bytes) else content.encode()
        np.testing.assert_array_equal(decode_series(content), values)
    assert decode_series(b"1\n2\n0\n").tolist() == [[1], [2], [0]]
    assert decode_series(npy(np.arange(4))).tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("length", "steps"), [(5, 9), (9, 5), (7, 7), (1, 4), (2, 3), (6, 1)])
def test_a_series_is_brought_to_a_number_of_steps_by_straight_lines(length, steps):
    values = np.random.default_rng(length).normal(size=(length, 2, 3)).astype(np.float32)
    found = decode_series(npy(values), (steps,))
    assert found.shape == (steps, 2, 3)
    for channel in np.ndindex(2, 3):
        at = np.linspace(0, length - 1, steps)
        np.testing.assert_allclose(found[(slice(None), *channel)], np.interp(at, range(length), values[(..., *channel)]), atol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(decode_series(npy(values), (steps, 2, 3)), found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"\x93NUMPY", "not a .npy file"),
        (npy(np.ones(3))[:-4], "20 bytes of 24; is it truncated"),
        (npy(np.array([{}]), allow_pickle=True), "refused .allow_pickle."),
        (npy(np.array(["a"])), "expected numbers"),
        (npy(np.zeros((0, 3))), "without numbers"),
        (npy(np.array([1, np.nan])), "NaN or inf in 1 of 2"),
        (b"\xff\xfe\x00", "neither a .npy nor a CSV"),
        (b"1,2\n3\n", "moment 2 has 1 columns"),
        (b"1,2\n3,x\n", "moment 2, column 2: expected a number, got 'x'"),
        (b"a,b\n", "without numbers"),
        (b"\n\n", "without numbers"),
    ],
)
def test_series_that_are_refused(content, says):
    with pytest.raises(DataError, match=says):
        decode_series(content)


def test_a_header_is_checked_before_its_promise_is_allocated():
    with pytest.raises(DataError, match=r"1,000,000,000,000 numbers"):
        decode_npy(_promised(10**12))
    with pytest.raises(DataError, match="bytes of 8,000,000; is it truncated"):
        decode_npy(_promised(10**6))
    with pytest.raises(DataError, match="expected 3|channels"):
        decode_series(npy(np.ones((4, 2))), (8, 3))


def _promised(count) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (count,)})
    return file.getvalue() + b"\0" * 24


def test_texts():
    assert decode_text("\ufeff  größe \n".encode()) == "größe"
    for content, says in (
        (b" \n", "without a letter"),
        (b"\xff", "not a text in UTF-8 .byte 0"),
        (b"a\0b", "zero bytes"),
    ):
        with pytest.raises(DataError, match=says):
            decode_text(content)


def test_random_bytes_never_raise_anything_else():
    draw = np.random.default_rng(0)
    whole = [
        saved(halves(), "PNG"),
        saved(halves(), "JPEG"),
        saved(halves(), "GIF"),
        npy(np.ones((4, 3))),
        b"1,2\n3,4\n",
    ]
    for round_ in range(300):
        broken = bytearray(whole[round_ % len(whole)])
        for at in draw.integers(len(broken), size=draw.integers(1, 8)):
            broken[at] = draw.integers(256)
        for decode in (decode_image, decode_series, decode_text):
            try:
                decode(bytes(broken))
            except DataError as error:
                assert "\n" not in str(error) and len(str(error)) < 250


def sixteen_bits(values, colour, clear) -> bytes:
    """A PNG of one row whose numbers have 16 bits; `clear` is the number that is transparent, in all channels."""

    def part(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"".join(struct.pack(">H", value) * (3 if colour else 1) for value in values)
    head = struct.pack(">IIBBBBB", len(values), 1, 16, 2 if colour else 0, 0, 0, 0)
    mark = part(b"tRNS", struct.pack(">H", clear) * (3 if colour else 1))
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", head)
        + mark
        + part(b"IDAT", zlib.compress(b"\0" + row))
        + part(b"IEND", b"")
    )


@pytest.mark.parametrize("colour", [False, True])
def test_transparency_of_sixteen_bits_is_compared_exactly(colour):
    """PNG specification 11.3.2.1; 0x1299 and 0x1200 share a half each with the transparent number, and are not it."""
    values = [0x1234, 0x3434, 0x1212, 0xFFFF, 0x1299, 0x3412, 0x0034]
    found = decode_image(sixteen_bits(values, colour, 0x1234), (1, len(values), 3))[0]
    want = [255, 0x34, 0x12, 255, 0x12 if colour else 0x13, 0x34, 0]
    assert [pixel.tolist() for pixel in found] == [[value] * 3 for value in want]
    alpha = decode_image(sixteen_bits(values, colour, 0x1234), (1, len(values), 4))[0, :, 3]
    assert alpha.tolist() == [0, 255, 255, 255, 255, 255, 255]
