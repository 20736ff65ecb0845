"""Rows of a subset: so many or such a share of each class, or a list."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfseen.data.subsets import Listed, first_of_each_class, read_subset_list, rows_of_list, share_of_each_class
from halfseen.errors import DataError

LABELS = st.lists(st.integers(-1, 4), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(labels=LABELS, count=st.integers(1, 20))
def test_each_class_gives_its_first_rows(labels: np.ndarray, count: int) -> None:
    rows = first_of_each_class(labels, count)
    expected = [row for label in range(5) for row in np.flatnonzero(labels == label)[:count]]
    assert rows.tolist() == sorted(expected)


@given(labels=LABELS, percent=st.integers(1, 100), rounding=st.sampled_from(["floor", "ceil", "round"]))
def test_each_class_gives_its_share(labels: np.ndarray, percent: int, rounding: str) -> None:
    rows = share_of_each_class(labels, percent / 100, rounding)
    assert (np.diff(rows) > 0).all()
    for label in range(5):
        whole = np.flatnonzero(labels == label)
        product = percent * len(whole)  # in hundredths: exact
        wanted = {"floor": product // 100, "ceil": math.ceil(product / 100), "round": round(product / 100)}[rounding]
        assert rows[labels[rows] == label].tolist() == whole[:wanted].tolist()


def test_decimal_shares_are_meant_as_written() -> None:
    labels = np.zeros(100, dtype=np.int64)
    assert len(share_of_each_class(labels, 0.29)) == 29  # 0.29 * 100 is 28.999999999999996
    assert len(share_of_each_class(labels, 0.07, "ceil")) == 7  # 0.07 * 100 is 7.000000000000001
    assert len(share_of_each_class(labels[:5], 0.5, "round")) == 2


def test_names_say_which_come_first() -> None:
    labels = np.array([0, 1, 0, 1, 0], dtype=np.int64)
    names = ["z.png", "b.png", "a.png", "c.png", "B.png"]
    assert first_of_each_class(labels, 1, names).tolist() == [1, 4]
    assert first_of_each_class(labels, 2, names).tolist() == [1, 2, 3, 4]


def test_lists_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("n01/a b.JPEG 0\n\nn02/ä.png owl\r\n", "utf-8")
    assert read_subset_list(path) == [Listed("n01/a b.JPEG", "0"), Listed("n02/ä.png", "owl")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.png 0\nb.png\n", r"line 2 of .* is 'b\.png', expected"), ("\n\n", "lists no images"), (None, "can't read")],
)
def test_lists_of_another_form_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"data\.subset_list: .*{message}"):
        read_subset_list(path)


NAMES = ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "train/dog/2.png"]


def rows(*lines: tuple[str, str], **more: object) -> list[int]:
    listed = [Listed(*line) for line in lines]
    labels = np.array([0, 0, 1, 1], dtype=np.int64)
    return rows_of_list(listed, NAMES, labels, ("cat", "dog"), folder="train", **more).tolist()


def test_listed_images_keep_the_order_of_the_data() -> None:
    assert rows(("dog/2.png", "1"), ("cat/1.png", "cat"), ("train/dog/1.png", "dog")) == [0, 2, 3]
    assert rows(("cat/1.png", "0"), ("cat/3.png", "0"), left_out=["train/cat/3.png"]) == [0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("cat/9.png", "0"), r"1 of 2 listed images are not in the training split: 'cat/9\.png'\. Write paths"),
        (("cat/1.png", "0"), r"'cat/1\.png' is listed twice"),
        (("dog/1.png", "0"), r"with the class '0', but in this data set its class is 1 \('dog'\)"),
    ],
)
def test_lists_that_do_not_fit_are_refused(line: tuple[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(("cat/1.png", "0"), line)
