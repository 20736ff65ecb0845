"""Every kind of image file gives the right pixels or a reason; ordinary ones equal Pillow's exactly."""

import io
import os
import pickle
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.data.decode import BadImage, decode_image, decode_mask, inspect_image
from odd_images import OddImage, encode, picture, turned, write_odd_images


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> list[OddImage]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


def decode_or_reason(path: Path) -> tuple[np.ndarray | None, str]:
    try:
        return decode_image(path), ""
    except BadImage as bad:
        return None, bad.reason


def test_there_are_at_least_200_odd_images_of_both_sorts(odd_images: list[OddImage]) -> None:
    assert len(odd_images) >= 200
    assert sum(odd.expected is None for odd in odd_images) >= 40
    assert sum(odd.expected is not None for odd in odd_images) >= 150


def test_odd_images_that_work_give_the_right_pixels(odd_images: list[OddImage]) -> None:
    wrong = []
    for odd in odd_images:
        if odd.expected is None:
            continue
        pixels, reason = decode_or_reason(odd.path)
        if pixels is None or pixels.shape != odd.expected.shape or pixels.dtype != np.uint8:
            wrong.append((odd.path.name, reason, None if pixels is None else pixels.shape))
        elif np.abs(pixels.astype(int) - odd.expected).max() > odd.tolerance:
            wrong.append((odd.path.name, "largest difference", np.abs(pixels.astype(int) - odd.expected).max()))
    assert wrong == []


def test_bad_images_are_refused_with_their_reason(odd_images: list[OddImage]) -> None:
    wrong = []
    for odd in odd_images:
        if odd.expected is None:
            pixels, reason = decode_or_reason(odd.path)
            if pixels is not None or not reason or odd.reason not in reason or "\n" in reason or len(reason) > 160:
                wrong.append((odd.path.name, reason))
    assert wrong == []


def test_the_result_can_be_written_to_and_is_contiguous(odd_images: list[OddImage]) -> None:
    for odd in odd_images:
        pixels, _ = decode_or_reason(odd.path)
        if pixels is not None:
            assert pixels.flags.writeable, odd.path.name
            assert pixels.flags.c_contiguous, odd.path.name


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_equals_pillow_to_the_bit(subsampling: int, progressive: bool) -> None:
    noise = np.random.default_rng(1).normal(scale=9, size=(375, 500, 3))
    image = Image.fromarray(np.clip(picture(375, 500) + noise, 0, 255).astype(np.uint8))
    data = encode(image, "JPEG", quality=88, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("shrink_to", "factor"), [(None, 1), (301, 1), (188, 1), (150, 2), (76, 2), (75, 4), (38, 8), (1, 8)]
)
def test_shrinking_keeps_the_shorter_side_and_equals_pillows_draft(
    orientation: int, shrink_to: int | None, factor: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turned(picture(300, 431), orientation)
    data = encode(Image.fromarray(stored), "JPEG", quality=90, exif=exif)
    pixels = decode_image(data, shrink_to=shrink_to)
    assert min(pixels.shape[:2]) == -(-300 // factor)
    assert min(pixels.shape[:2]) >= min(shrink_to or 300, 300)
    draft = Image.open(io.BytesIO(data))
    if factor > 1:
        draft.draft("RGB", (stored.shape[1] // factor, stored.shape[0] // factor))
    draft.load()
    undone = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    assert np.array_equal(pixels, turned(np.asarray(draft), undone))


def test_an_image_is_never_enlarged_by_shrink_to() -> None:
    data = encode(Image.fromarray(picture(20, 30)), "JPEG")
    assert decode_image(data, shrink_to=500).shape == (20, 30, 3)


def test_shrink_to_leaves_other_formats_at_full_size() -> None:
    rgb = picture(64, 64)
    assert np.array_equal(decode_image(encode(Image.fromarray(rgb), "PNG"), shrink_to=8), rgb)


def test_max_pixels_is_exact_and_of_the_call_not_of_the_process() -> None:
    for file_format in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        data = encode(Image.fromarray(picture(20, 30)).convert("RGB"), file_format)
        assert decode_image(data, max_pixels=600).shape == (20, 30, 3)
        with pytest.raises(BadImage, match=r"too large: 30 x 20 pixels, data\.max_pixels allows 599"):
            decode_image(data, max_pixels=599)


def test_a_larger_limit_than_pillows_own_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    rgb = picture(40, 50)
    for file_format in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode_image(encode(Image.fromarray(rgb), file_format)), rgb)
    assert decode_image(encode(Image.fromarray(rgb), "WEBP", lossless=True)).shape == rgb.shape
    assert Image.MAX_IMAGE_PIXELS == 100


def test_lab_tiff() -> None:
    lab = Image.merge("LAB", [Image.new("L", (5, 4), value) for value in (136, 128, 128)])
    pixels = decode_image(encode(lab, "TIFF"))
    assert pixels.shape == (4, 5, 3)
    # L* = 136/255*100 = 53.3 without colour is sRGB grey 127 (to the profile's rounding).
    assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_folders_and_forbidden_and_missing_files_have_their_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    with pytest.raises(BadImage, match="a folder, not a file"):
        decode_image(folder)
    with pytest.raises(BadImage, match="the file does not exist"):
        decode_image(tmp_path / "nothing.png")
    with pytest.raises(BadImage, match="not a possible file name"):
        decode_image("a\0b.png")
    with pytest.raises(BadImage, match="can't be opened"):
        decode_image(tmp_path / ("x" * 300 + ".png"))


@pytest.fixture
def common_user() -> Iterator[None]:
    """Root may read everything, so a test that runs as root becomes nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_file_without_permission(common_user: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "secret.png"
        path.write_bytes(encode(Image.fromarray(picture()), "PNG"))
        path.chmod(0)
        with pytest.raises(BadImage, match="no permission to read it"):
            decode_image(path)


def test_bad_image_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(BadImage("why"))).reason == "why"


def test_threads_leave_the_warning_filters_as_they_were(odd_images: list[OddImage]) -> None:
    before = list(warnings.filters)
    paths = [odd.path for odd in odd_images[:120]]
    threads = [threading.Thread(target=lambda: [decode_or_reason(path) for path in paths]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_inspection_tells_format_mode_size_and_turn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = inspect_image(encode(Image.fromarray(picture(20, 30)), "JPEG", exif=exif))
    assert facts == ("JPEG", "RGB", 30, 20, 6)
    facts = inspect_image(encode(Image.fromarray(picture(20, 30)).quantize(8), "GIF"))
    assert facts == ("GIF", "P", 30, 20, 1)
    assert inspect_image(encode(Image.fromarray(picture(20, 30)), "TIFF", tiffinfo={0x0112: 3})).orientation == 3
    with pytest.raises(BadImage, match="empty"):
        inspect_image(b"")


def test_masks_give_classes_not_colours(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 11, size=(9, 13), dtype=np.uint8)
    plain = Image.fromarray(classes)
    plain.save(tmp_path / "plain.png")
    assert np.array_equal(decode_mask(tmp_path / "plain.png"), classes)
    coloured = plain.convert("P")
    coloured.putdata(classes.ravel().tolist())
    coloured.putpalette(np.random.default_rng(1).integers(0, 256, 33).tolist())
    coloured.save(tmp_path / "palette.png")
    assert np.array_equal(decode_mask(tmp_path / "palette.png"), classes)
    Image.fromarray(classes.astype(np.uint16)).save(tmp_path / "deep.png")
    assert np.array_equal(decode_mask(tmp_path / "deep.png"), classes)
    Image.fromarray(picture()).save(tmp_path / "rgb.png")
    with pytest.raises(BadImage, match="one channel"):
        decode_mask(tmp_path / "rgb.png")
    Image.fromarray(classes.astype(np.uint16) + 250).save(tmp_path / "large.png")
    with pytest.raises(BadImage, match="classes 0 to 255, this one goes to 260"):
        decode_mask(tmp_path / "large.png")
