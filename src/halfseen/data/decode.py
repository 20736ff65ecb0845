"""One image file to uint8 RGB, whatever its kind.

Ordinary JPEGs go through OpenCV: measured 1.3 to 1.5 times as fast as Pillow on 500x375 pictures, with the same pixels
(both carry libjpeg-turbo), and it can shrink while it decodes. All else goes through Pillow, opened by content and not
by extension. What can't be used raises `BadImage` with a reason. Embedded colour profiles are ignored.
"""

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

MAX_PIXELS = 178_956_970
ORIENTATION_TAG, TILE_WIDTH, TILE_LENGTH = 0x0112, 0x0142, 0x0143
Stream = io.BytesIO | io.BufferedReader
Opener = Callable[[Stream], ImageFile.ImageFile]

_JPEG_START = b"\xff\xd8\xff"
_OPENERS: tuple[tuple[bytes, Opener], ...] = (
    (_JPEG_START, JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00+", TiffImagePlugin.TiffImageFile),
    *((b"P%d" % digit, PpmImagePlugin.PpmImageFile) for digit in range(1, 7)),
    (b"Pf", PpmImagePlugin.PpmImageFile),
)
# Sentences for what some of Pillow's plugins say.
_PLAINER = {
    "could not create decoder object": "damaged: the WebP is cut short or broken",
    "not identified by this driver": "damaged: the header is cut short or broken",
    "Missing dimensions": "damaged: the header is cut short or broken",
    "no more images in GIF file": "damaged: the GIF holds no picture",
}
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class BadImage(Exception):
    """An image that can't be used; `reason` is a short sentence for lists of skipped files."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str]]:
        return type(self), (self.reason,)


class ImageFacts(NamedTuple):
    """What a file's header says.

    Attributes:
        format: JPEG, PNG, GIF, BMP, WEBP, TIFF or PPM.
        mode: Pillow's name of the pixel layout, e.g. 'RGB', 'P', 'I;16'.
        width: pixels, as stored (before the EXIF turn).
        height: pixels, as stored.
        orientation: EXIF orientation, 1 to 8; 1 = upright.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int


def decode_image(
    source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS, shrink_to: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in a file or in the bytes of one.

    Transparency is laid over white; 16-bit grey is divided by 257; of animations and stacks the first picture is
    taken; the EXIF orientation is applied.

    Args:
        source: path, or the file's content.
        max_pixels: more than this many pixels, as stored, are refused before they are decoded.
        shrink_to: JPEGs may come out at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps this many
            pixels; None always decodes at full size.
    Returns:
        uint8 [H, W, 3], RGB, writable.
    Raises:
        BadImage: if there is no picture to be had.
    """
    if isinstance(source, bytes):
        return _decode_stream(io.BytesIO(source), len(source), max_pixels, shrink_to)
    with open_regular(source) as stream:
        return _decode_stream(stream, os.fstat(stream.fileno()).st_size, max_pixels, shrink_to)


def decode_mask(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W"]:
    """Class per pixel: uint8 [H, W]. Palette files give their indices (not colours), grey files their values.

    Raises:
        BadImage: if the file can't be read or has more than one channel.
    """
    with open_regular(path) as stream, _sentences(), _pillow_is_quiet(max_pixels):
        image = _open_by_content(stream, stream.read(16))
        _refuse_bombs(image.width, image.height, max_pixels)
        image.load()
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            raise BadImage(f"a mask needs one channel, this one has the mode {image.mode}")
        values = np.array(image)
        if values.max(initial=0) > 255:
            raise BadImage(f"a mask holds classes 0 to 255, this one goes to {values.max()}")
        return _upright(values.astype(np.uint8), _orientation(image))


def inspect_image(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Format, mode, size and orientation from the header, without decoding the picture.

    Raises:
        BadImage: if it is not an image.
    """
    with ExitStack() as stack:
        stream: Stream = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(open_regular(source))
        stack.enter_context(_sentences())
        stack.enter_context(_pillow_is_quiet(max_pixels))
        image = _open_by_content(stream, stream.read(16))
        turn = _tiff_orientation(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else _orientation(image)
        return ImageFacts(image.format or "", image.mode, image.width, image.height, turn)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """The file opened for reading; folders, pipes and missing or forbidden files raise `BadImage`."""
    try:
        # Without O_NONBLOCK a named pipe called x.jpg would hang the run for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        dangling = Path(path).is_symlink()
        raise BadImage("a link to a file that does not exist" if dangling else "the file does not exist") from None
    except IsADirectoryError:
        raise BadImage("a folder, not a file") from None
    except PermissionError:
        raise BadImage("no permission to read it") from None
    except OSError as error:
        raise BadImage(f"can't be opened: {error.strerror or error}") from None
    except ValueError as error:
        raise BadImage(f"not a possible file name: {error}") from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise BadImage("a folder, not a file" if stat.S_ISDIR(kind) else "not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def _decode_stream(stream: Stream, size: int, max_pixels: int, shrink_to: int | None) -> np.ndarray:
    if size == 0:
        raise BadImage("the file is empty")
    with _sentences():
        start = stream.read(16)
        if start.startswith(_JPEG_START):
            data = start + stream.read()
            picture = _decode_plain_jpeg(data, max_pixels, shrink_to)
            if picture is not None:
                return picture
            stream = io.BytesIO(data)
        with _pillow_is_quiet(max_pixels):
            image = _open_by_content(stream, start)
            _refuse_bombs(image.width, image.height, max_pixels)
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # a small picture may come in one enormous tile
                _refuse_bombs(image.tag_v2.get(TILE_WIDTH, 0), image.tag_v2.get(TILE_LENGTH, 0), max_pixels)
            image.load()
            _refuse_bombs(image.width, image.height, max_pixels)
            return _upright(_to_rgb(image), _orientation(image))


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns whatever a decoder throws at a damaged file into `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if text in _PLAINER:
            raise BadImage(_PLAINER[text]) from None
        if isinstance(error, EOFError) or any(
            word in text.lower() for word in ("truncated", "not enough", "unexpected end")
        ):
            raise BadImage("truncated: the file ends before the picture does") from None
        raise BadImage(f"damaged: {text[:120]}") from None


class _Quiet:
    """Pillow's warnings switched off while any thread decodes.

    `warnings.catch_warnings` is not safe in threads: two that overlap can restore each other's filters in the wrong
    order. The first to come switches off and the last to leave switches on again.
    """

    lock = threading.Lock()
    depth = 0
    filters = ExitStack()


@contextmanager
def _pillow_is_quiet(max_pixels: int = 0) -> Iterator[None]:
    with _Quiet.lock:
        _Quiet.depth += 1
        if _Quiet.depth == 1:
            _Quiet.filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
            # Some plugins ask for Pillow's own limit again; where the user allows more, it stands back meanwhile.
            _Quiet.filters.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0:
                _Quiet.filters.close()


def _open_by_content(stream: Stream, start: bytes) -> ImageFile.ImageFile:
    """The image with its header read; `start` is what was read of the stream so far.

    The plugins are called directly, because `Image.open` knows one process-wide limit of pixels only.
    """
    if not start:
        raise BadImage("the file is empty")
    stream.seek(0)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(stream)
    for magic, opener in _OPENERS:
        if start.startswith(magic):
            return opener(stream)
    raise BadImage("not an image: the content is of no known kind")


def _refuse_bombs(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(f"too large: {width} x {height} pixels, data.max_pixels allows {max_pixels}")


class _JpegHeader(NamedTuple):
    width: int
    height: int
    orientation: int


def _decode_plain_jpeg(data: bytes, max_pixels: int, shrink_to: int | None) -> np.ndarray | None:
    """The fast road; None means that Pillow has to look (another colour space, damage, strange metadata)."""
    header = _read_plain_jpeg_header(data)
    # Some OpenCV releases fill what a cut file lacks with grey and say nothing, so only complete files come this way.
    if header is None or not data.endswith(b"\xff\xd9"):
        return None
    _refuse_bombs(header.width, header.height, max_pixels)
    reduced = _REDUCED[_shrink_factor(header.width, header.height, shrink_to)]
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), reduced | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if picture is None:
        return None
    return _upright(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture), header.orientation)


def _shrink_factor(width: int, height: int, shrink_to: int | None) -> int:
    if shrink_to is None:
        return 1
    shorter = min(width, height)
    return next((factor for factor in (8, 4, 2) if -(-shorter // factor) >= shrink_to), 1)


def _read_plain_jpeg_header(data: bytes) -> _JpegHeader | None:
    """Size and orientation of an 8-bit grey or three-channel JPEG; None for anything unusual.

    Walking the markers costs a tenth of opening the file with Pillow, which would add 9 % to a 500x375 picture.
    """
    position, orientation = 2, 1
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2):
            if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3):
                return None
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            return _JpegHeader(width, height, orientation) if width and height else None
        if marker == 0xE1:
            if body.startswith(b"Exif\x00\x00"):
                orientation = _parse_exif_orientation(body)
            elif b"tiff:Orientation" in body:
                return None
        if marker in (0xD8, 0xD9, 0xDA, 0xFF, 0x00) or length < 2:
            return None
        position += 2 + length
    return None


def _parse_exif_orientation(body: bytes) -> int:
    exif = Image.Exif()
    try:
        with _pillow_is_quiet():
            exif.load(body)
            return _valid_turn(exif.get(ORIENTATION_TAG))
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        return _valid_turn(image.getexif().get(ORIENTATION_TAG))
    except Exception:  # as above
        return 1


def _tiff_orientation(image: TiffImagePlugin.TiffImageFile) -> int:
    return _valid_turn(image.tag_v2.get(ORIENTATION_TAG))


def _valid_turn(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the camera's turn. picture: [H, W] or [H, W, 3]; orientation: EXIF, 1 to 8."""
    if orientation == 1:
        return picture
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image of any mode: uint8 [H, W, 3]."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _grey_to_rgb(image)
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted; without Adobe's marker they are not.
        return _rgb(Image.frombytes("CMYK", image.size, (255 - np.array(image)).tobytes()))
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _rgb(ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB")) or image)
    if mode == "La":
        image, mode = image.convert("LA"), "LA"
    if mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return _rgb(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba))
    return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(image: Image.Image) -> np.ndarray:
    """16-bit grey is divided by 257. For 32-bit numbers there is no rule of the format, so the values decide.

    Integers within 0 to 255 are taken as they are and within 0 to 65535 as 16-bit; floats within 0 to 1 are multiplied
    by 255 and within 0 to 255 taken as they are. Any other range is stretched from its smallest to its largest value.
    NaN and infinities count as the smallest value.
    """
    values = np.array(image).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BadImage("no finite pixel value")
    low, high = values[finite].min(), values[finite].max()
    values[~finite] = low
    if image.mode.startswith("I;16") or (image.mode != "F" and low >= 0 and 255 < high <= 65535):
        values /= 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        values *= 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    grey = np.rint(values).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int) and image.mode.startswith("I;16"):
        grey[np.array(image) == image.info["transparency"]] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)
