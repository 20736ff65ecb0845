"""Writes a folder of more than 200 odd image files, each with the pixels that are right for it or the reason it is bad.

Used wherever the promise is tested that any file works or is skipped with a reason:

    odd = write_odd_images(folder)          # list[OddImage], about half in class folder `a`, half in `b`
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class OddImage(NamedTuple):
    """One file.

    Attributes:
        path: where it lies.
        expected: uint8 [H, W, 3] that must be read from it, or None if it is bad.
        tolerance: largest difference allowed (0 unless the format loses something).
        reason: a part of the reason for which it must be skipped; None if it works.
    """

    path: Path
    expected: np.ndarray | None
    tolerance: int
    reason: str | None


class _File(NamedTuple):
    name: str
    data: bytes
    expected: np.ndarray | None
    tolerance: int = 0
    reason: str | None = None


def write_odd_images(folder: Path) -> list[OddImage]:
    """Writes the files into `folder`/a and `folder`/b and says what each must give."""
    written = []
    for number, file in enumerate(_files()):
        path = folder / "ab"[number % 2] / f"{number:03d}_{file.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        written.append(OddImage(path, file.expected, file.tolerance, file.reason))
    dangling = folder / "a" / "900_dangling_link.png"
    dangling.symlink_to(folder / "nowhere.png")
    written.append(OddImage(dangling, None, 0, "link to a file that does not exist"))
    pipe = folder / "b" / "901_pipe.jpg"
    os.mkfifo(pipe)
    written.append(OddImage(pipe, None, 0, "not a regular file"))
    return written


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """A smooth colour picture without symmetry: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [0.5 + 0.5 * np.sin(3 * x + 5 * y * (k + 1) + seed + k) for k in range(3)]
    return np.rint(255 * np.stack(channels, axis=2)).astype(np.uint8)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The content of a file with this image in it."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an upright picture when it notes this EXIF orientation."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(stored[orientation])


def over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] laid over white, in exact arithmetic."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    """[H, W] in three equal channels, uint8."""
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def strip_jpeg_segment(data: bytes, marker: int) -> bytes:
    """A JPEG without the header segments of one kind."""
    kept, position = bytearray(data[:2]), 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] != marker:
            kept += data[position:end]
        position = end
    return bytes(kept + data[position:])


def png_of_any_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any picture: a decompression bomb's header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def _files() -> Iterator[_File]:
    yield from _plain()
    yield from _transparent()
    yield from _palettes()
    yield from _cmyk()
    yield from _deep()
    yield from _rotated()
    yield from _animated()
    yield from _misnamed()
    yield from _tiny_and_long()
    yield from _truncated()
    yield from _hopeless()


def _plain() -> Iterator[_File]:
    rgb = picture()
    image = Image.fromarray(rgb)
    for suffix, file_format in ((".png", "PNG"), (".bmp", "BMP"), (".ppm", "PPM"), (".tif", "TIFF"), (".tiff", "TIFF")):
        yield _File("rgb" + suffix, encode(image, file_format), rgb)
        yield _File("upper_case" + suffix.upper(), encode(image, file_format), rgb)
    yield _File("lossless.webp", encode(image, "WEBP", lossless=True), rgb)
    yield _File("lossy.WEBP", encode(image, "WEBP", quality=95), rgb, 24)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate"):
        yield _File(f"{compression}.tif", encode(image, "TIFF", compression=compression), rgb)
    for quality in (75, 90, 98):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                data = encode(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                suffix = (".jpg", ".jpeg", ".JPG")[subsampling]
                yield _File(f"q{quality}_s{subsampling}_p{int(progressive)}{suffix}", data, pixels)
    luma = np.asarray(image.convert("L"))
    for suffix, file_format in ((".png", "PNG"), (".bmp", "BMP"), (".tif", "TIFF"), (".gif", "GIF"), (".ppm", "PPM")):
        yield _File("grey" + suffix, encode(image.convert("L"), file_format), grey(luma))
    data = encode(image.convert("L"), "JPEG", quality=95)
    yield _File("grey.jpg", data, grey(np.asarray(Image.open(io.BytesIO(data)))))
    yield _File("rgb_stored_as_rgb.jpg", encode(image, "JPEG", quality=100, keep_rgb=True), rgb, 4)
    bits = luma > 127
    for suffix, file_format in ((".png", "PNG"), (".bmp", "BMP"), (".tif", "TIFF"), (".ppm", "PPM"), (".gif", "GIF")):
        yield _File("one_bit" + suffix, encode(Image.fromarray(bits), file_format), grey(bits * 255))
    yield _File("fax.tif", encode(Image.fromarray(bits), "TIFF", compression="group4"), grey(bits * 255))


def _transparent() -> Iterator[_File]:
    rgb = picture(seed=1)
    alpha = np.tile(np.linspace(0, 255, rgb.shape[1]), (rgb.shape[0], 1)).astype(np.uint8)
    for name, values in (
        ("graded", alpha),
        ("clear", alpha * 0),
        ("opaque", alpha * 0 + 255),
        ("half", alpha * 0 + 128),
    ):
        rgba = np.dstack([rgb, values])
        for suffix, file_format in ((".png", "PNG"), (".tif", "TIFF")):
            yield _File(f"rgba_{name}{suffix}", encode(Image.fromarray(rgba), file_format), over_white(rgba), 1)
        lossless = encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
        yield _File(f"rgba_{name}.webp", lossless, over_white(rgba), 1)
        la = np.dstack([rgb[..., 0], values])
        expected = over_white(np.dstack([rgb[..., :1]] * 3 + [values]))
        for suffix, file_format in ((".png", "PNG"), (".tif", "TIFF")):
            yield _File(f"la_{name}{suffix}", encode(Image.fromarray(la, "LA"), file_format), expected, 1)
    clear = rgb.copy()
    clear[:9, :9] = (10, 20, 30)
    shown = clear.copy()
    shown[:9, :9] = 255
    yield _File("rgb_one_clear_colour.png", encode(Image.fromarray(clear), "PNG", transparency=(10, 20, 30)), shown)
    plane = np.minimum(clear[..., 0], 200)
    plane[:5] = 222
    shown = plane.copy()
    shown[:5] = 255
    yield _File("grey_one_clear_value.png", encode(Image.fromarray(plane), "PNG", transparency=222), grey(shown))


def _palettes() -> Iterator[_File]:
    generator = np.random.default_rng(3)
    for colours in (2, 4, 16, 100, 256):
        palette = generator.integers(0, 256, size=(colours, 3), dtype=np.uint8)
        index = generator.integers(0, colours, size=(30, 44), dtype=np.uint8)
        image = Image.fromarray(index).convert("P")
        image.putdata(index.ravel().tolist())
        image.putpalette(palette.ravel().tolist())
        for suffix, file_format in ((".png", "PNG"), (".gif", "GIF"), (".bmp", "BMP"), (".tif", "TIFF")):
            yield _File(f"palette_{colours}{suffix}", encode(image, file_format), palette[index])
        shown = palette[index].copy()
        shown[index == 1] = 255
        for suffix, file_format in ((".png", "PNG"), (".gif", "GIF")):
            yield _File(f"palette_{colours}_clear{suffix}", encode(image, file_format, transparency=1), shown)
        alphas = generator.integers(0, 256, size=colours, dtype=np.uint8)
        expected = over_white(np.dstack([palette[index], alphas[index]]))
        data = encode(image, "PNG", transparency=alphas.tobytes())
        yield _File(f"palette_{colours}_alphas.png", data, expected, 1)


def _cmyk() -> Iterator[_File]:
    rgb = picture(seed=2)
    black = 255 - rgb.max(axis=2)
    ink = np.dstack([255 - rgb, black // 2])
    paper = 255 - np.rint(ink[..., 3]).astype(int)
    expected = np.rint((255 - ink[..., :3].astype(int)) * paper[..., None] / 255).astype(np.uint8)
    image = Image.fromarray(ink, "CMYK")
    yield _File("cmyk.tif", encode(image, "TIFF"), expected, 2)
    yield _File("cmyk_lzw.tif", encode(image, "TIFF", compression="tiff_lzw"), expected, 2)
    # Pillow writes what Adobe does: inverted inks and the Adobe marker.
    yield _File("cmyk_adobe.jpg", encode(image, "JPEG", quality=100, subsampling=0), expected, 8)
    upside = Image.fromarray(255 - ink, "CMYK")
    straight = strip_jpeg_segment(encode(upside, "JPEG", quality=100, subsampling=0), 0xEE)
    yield _File("cmyk_not_inverted.jpg", straight, expected, 8)
    ycbcr = Image.fromarray(rgb).convert("YCbCr")
    yield _File("ycbcr.tif", encode(ycbcr, "TIFF"), rgb, 4)
    yield _File("ycbcr.jpg", encode(ycbcr, "JPEG", quality=100, subsampling=0), rgb, 6)


def _deep() -> Iterator[_File]:
    byte = picture(seed=4)[..., 0]
    deep = byte.astype(np.uint16) * 257
    image = Image.fromarray(deep)
    yield _File("grey16.png", encode(image, "PNG"), grey(byte))
    yield _File("grey16.tif", encode(image, "TIFF"), grey(byte))
    yield _File("grey16_lzw.tif", encode(image, "TIFF", compression="tiff_lzw"), grey(byte))
    yield _File("grey16.ppm", b"P5 56 40 65535\n" + deep.astype(">u2").tobytes(), grey(byte))
    yield _File("grey16_big_endian.tif", _big_endian_tiff(deep), grey(byte))
    dark = (deep // 200).astype(np.uint16)
    yield _File("grey16_dark.png", encode(Image.fromarray(dark), "PNG"), grey(np.rint(dark / 257)))
    yield _File("rgb16.png", _png16(picture(seed=5).astype(np.uint16) * 257), picture(seed=5))
    rgb16 = (picture(seed=5).astype(np.uint16) * 257).astype(">u2").tobytes()
    yield _File("rgb16.ppm", b"P6 56 40 65535\n" + rgb16, picture(seed=5))
    whole = byte.astype(np.int32)
    yield _File("int32_as_8_bit.tif", encode(Image.fromarray(whole), "TIFF"), grey(byte))
    yield _File("int32_as_16_bit.tif", encode(Image.fromarray(whole * 257), "TIFF"), grey(byte))
    stretched = (byte.astype(np.float64) - byte.min()) * 255 / (int(byte.max()) - int(byte.min()))
    for name, values in (("large", whole * 70_000), ("negative", whole - 300)):
        yield _File(f"int32_{name}.tif", encode(Image.fromarray(values), "TIFF"), grey(np.rint(stretched)))
    unit = byte.astype(np.float32) / 255
    yield _File("float_unit.tif", encode(Image.fromarray(unit), "TIFF"), grey(byte))
    yield _File("float_byte.tif", encode(Image.fromarray(byte.astype(np.float32)), "TIFF"), grey(byte))
    yield _File("float_wide.tif", encode(Image.fromarray(unit * 9e4 - 5e3), "TIFF"), grey(np.rint(stretched)), 1)
    holes, expected = unit.copy(), byte.copy()
    holes[3:6, 3:6] = np.nan
    expected[3:6, 3:6] = np.rint(255 * holes[np.isfinite(holes)].min())
    yield _File("float_with_nan.tif", encode(Image.fromarray(holes), "TIFF"), grey(expected))
    yield _File("float_constant.tif", encode(Image.fromarray(unit * 0 + 700), "TIFF"), grey(byte * 0))
    yield _File("float_only_nan.tif", encode(Image.fromarray(unit * np.nan), "TIFF"), None, 0, "no finite pixel")


def _rotated() -> Iterator[_File]:
    upright = picture(seed=6)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(turned(upright, orientation))
        yield _File(f"turn{orientation}.png", encode(stored, "PNG", exif=exif), upright)
        yield _File(f"turn{orientation}.webp", encode(stored, "WEBP", lossless=True, exif=exif), upright)
        yield _File(f"turn{orientation}.tif", encode(stored, "TIFF", tiffinfo={0x0112: orientation}), upright)
        yield _File(f"turn{orientation}.jpg", encode(stored, "JPEG", quality=100, subsampling=0, exif=exif), upright, 6)
    for orientation in (0, 9, 4000):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(upright), "JPEG", quality=100, subsampling=0, exif=exif)
        yield _File(f"turn_impossible_{orientation}.jpg", data, upright, 6)
    data = encode(
        Image.fromarray(upright), "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    )
    yield _File("exif_damaged.jpg", data, upright, 6)
    turned_cmyk = Image.fromarray(turned(upright, 6)).convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield _File("turn6_cmyk.jpg", encode(turned_cmyk, "JPEG", quality=100, subsampling=0, exif=exif), upright, 8)
    palette = Image.fromarray(turned(upright, 8)).quantize(64)
    exif[0x0112] = 8
    shown = turned(np.asarray(palette.convert("RGB")), 6)
    yield _File("turn8_palette.png", encode(palette, "PNG", exif=exif), shown)
    tag = b'<rdf:RDF xmlns:rdf="r"><rdf:Description tiff:Orientation="3"/></rdf:RDF>'
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + tag + b"</x:xmpmeta>"
    data = encode(Image.fromarray(turned(upright, 3)), "JPEG", quality=100, subsampling=0, xmp=xmp)
    yield _File("turn3_by_xmp.jpg", data, upright, 6)


def _animated() -> Iterator[_File]:
    rgb = picture(seed=7)
    frames = [Image.fromarray(np.roll(rgb, 5 * k, axis=1)) for k in range(4)]
    quantized = [frame.quantize(32) for frame in frames]
    first = np.asarray(quantized[0].convert("RGB"))
    yield _File("animated.gif", encode(quantized[0], "GIF", save_all=True, append_images=quantized[1:]), first)
    yield _File("animated.png", encode(frames[0], "PNG", save_all=True, append_images=frames[1:]), rgb)
    yield _File("animated.webp", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), rgb)
    yield _File("pages.tif", encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]), rgb)
    pages = [frames[0], frames[1].convert("L"), Image.fromarray(picture(9, 9))]
    yield _File("mixed_pages.tiff", encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), rgb)


def _misnamed() -> Iterator[_File]:
    rgb = picture(seed=8)
    image = Image.fromarray(rgb)
    for content in ("PNG", "BMP", "PPM", "TIFF"):
        for suffix in (".jpg", ".gif", ".webp"):
            yield _File(f"in_truth_{content}{suffix}", encode(image, content), rgb)
    data = encode(image, "JPEG", quality=90)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    for suffix in (".png", ".tif", ".bmp"):
        yield _File(f"in_truth_JPEG{suffix}", data, pixels)
    yield _File("with_rubbish_behind.jpg", data + b"\0" * 70 + b"rubbish", pixels)
    yield _File("name with ünïcode 图像 & ';.jpg", data, pixels)


def _tiny_and_long() -> Iterator[_File]:
    for height, width in ((1, 1), (1, 7), (5, 1), (2, 300), (300, 3), (3, 3), (16, 16)):
        rgb = picture(height, width, seed=9)
        yield _File(f"{height}x{width}.png", encode(Image.fromarray(rgb), "PNG"), rgb)
        data = encode(Image.fromarray(rgb), "JPEG", quality=95)
        yield _File(f"{height}x{width}.jpg", data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def _truncated() -> Iterator[_File]:
    noise = np.random.default_rng(5).integers(0, 256, size=(64, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for file_format, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("PPM", ".ppm")):
        data = encode(image, file_format)
        for share in (0.2, 0.5, 0.9):
            yield _File(f"cut_{int(100 * share)}{suffix}", data[: int(share * len(data))], None, 0, "")
    progressive = encode(image, "JPEG", progressive=True)
    yield _File("cut_progressive.jpg", progressive[: len(progressive) // 2], None, 0, "truncated")
    yield _File("cut_last_byte.jpg", progressive[:-1], None, 0, "truncated")
    for compression in ("raw", "tiff_lzw"):
        data = encode(image, "TIFF", compression=compression)
        yield _File(f"cut_{compression}.tif", data[: len(data) // 2], None, 0, "")
    data = encode(image.quantize(200), "GIF")
    yield _File("cut.gif", data[: len(data) // 2], None, 0, "truncated")
    for suffix in (".jpg", ".png", ".gif", ".webp", ".tif", ".bmp", ".ppm"):
        file_format = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
        yield _File(f"header_only{suffix}", encode(image, file_format)[:20], None, 0, "")


def _hopeless() -> Iterator[_File]:
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"):
        yield _File(f"empty{suffix}", b"", None, 0, "the file is empty")
    rubbish = np.random.default_rng(6).integers(0, 256, size=3000, dtype=np.uint8).tobytes()
    for suffix in (".jpg", ".png", ".gif", ".webp", ".tif"):
        yield _File(f"rubbish{suffix}", b"\x01" + rubbish, None, 0, "not an image")
    yield _File("page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", None, 0, "not an image")
    yield _File("script.png", b"#!/bin/sh\necho hello\n", None, 0, "not an image")
    yield _File(
        "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None, 0, "not an image"
    )
    yield _File("one_byte.png", b"\x89", None, 0, "not an image")
    yield _File("bomb.png", png_of_any_size(30_000, 30_000), None, 0, "too large")
    yield _File("bomb_wide.png", png_of_any_size(2_000_000_000, 2_000_000_000), None, 0, "too large")
    data = bytearray(encode(Image.fromarray(picture()), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    yield _File("bomb.jpg", bytes(data), None, 0, "too large")
    data = bytearray(encode(Image.fromarray(picture()), "PNG"))
    middle = data.index(b"IDAT") + 30
    data[middle : middle + 60] = bytes(60)
    yield _File("corrupt.png", bytes(data), None, 0, "damaged")
    bmp = bytearray(encode(Image.fromarray(picture()), "BMP"))
    bmp[18:26] = struct.pack("<ii", 20_000, 20_000)
    yield _File("bomb.bmp", bytes(bmp), None, 0, "too large")


def _big_endian_tiff(values: np.ndarray) -> bytes:
    """A minimal uncompressed big-endian TIFF with one 16-bit grey strip."""
    height, width = values.shape
    body = values.astype(">u2").tobytes()
    short, long = 3, 4
    entries = [
        (256, long, width),
        (257, long, height),
        (258, short, 16),
        (259, short, 1),
        (262, short, 1),
        (273, long, 8),
        (277, short, 1),
        (278, long, height),
        (279, long, len(body)),
    ]
    directory = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(">HH", value, 0) if kind == short else struct.pack(">I", value)
        directory += struct.pack(">HHI", tag, kind, 1) + packed
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + directory + bytes(4)


def _png16(rgb: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel, which Pillow can read but not write. rgb: uint16 [H, W, 3]."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
