"""Label splits: the published text format in both forms, nested draws, and sentences for lists that don't fit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halfseen.data.bundled import open_fashion
from halfseen.data.label_splits import draw_label_splits, read_label_split, split_lines
from halfseen.data.skip_list import SKIP_LIST_NAME, SkipEntry, write_skip_list
from halfseen.data.sources import ArraySource, Source, open_source
from halfseen.errors import DataError


def tree(root: Path, files: dict[str, int], name: str = "{label}_{index}.JPEG", splits: bool = True) -> Source:
    """The genuine layout: train/<class>/<class>_<number>.JPEG beside val/."""
    for label, count in files.items():
        for index in range(count):
            path = root / ("train" if splits else "") / label / name.format(label=label, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (index, 0, 0)).save(path)
    if splits:
        (root / "val" / next(iter(files))).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / "val" / next(iter(files)) / "ILSVRC2012_val_00000001.JPEG")
    return open_source(str(root))


def in_memory(sizes: list[int]) -> ArraySource:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"c{index}" for index in range(len(sizes))]
    return ArraySource("memory", np.zeros((len(labels), 2, 2), np.uint8), labels, names)


def listed(source: Source, path: Path) -> set[str]:
    return {Path(source.path(int(row))).name for row in read_label_split(path, source).rows}


def test_both_line_forms_name_the_same_images(tmp_path):
    source = tree(tmp_path / "imagenet", {"n01440764": 3, "n01443537": 3})
    published, slashed, whole = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    published.write_text("n01443537_2.JPEG\nn01440764_0.JPEG\n\n")
    slashed.write_text("n01443537/n01443537_2.JPEG\r\nn01440764/n01440764_0.JPEG\r\n")
    whole.write_text("train/n01440764/n01440764_0.JPEG\ntrain/n01443537/n01443537_2.JPEG")
    assert listed(source, published) == {"n01443537_2.JPEG", "n01440764_0.JPEG"}
    assert listed(source, slashed) == listed(source, published) == listed(source, whole)
    split = read_label_split(published, source, draw=2)
    assert (split.origin, split.draw) == (str(published), 2)
    assert source.labels[split.rows].tolist() == [0, 1]


def test_the_train_folder_itself_can_be_the_data(tmp_path):
    tree(tmp_path / "imagenet", {"n01440764": 3, "n01443537": 3})
    source = open_source(str(tmp_path / "imagenet" / "train"))
    (tmp_path / "a.txt").write_text("n01443537_1.JPEG\nn01440764/n01440764_0.JPEG\n")
    assert listed(source, tmp_path / "a.txt") == {"n01443537_1.JPEG", "n01440764_0.JPEG"}


def test_classes_whose_names_hold_an_underscore_are_found(tmp_path):
    source = tree(tmp_path / "animals", {"red_fox": 2, "red": 2}, splits=False)
    (tmp_path / "a.txt").write_text("red_fox_1.JPEG\nred_0.JPEG\n")
    split = read_label_split(tmp_path / "a.txt", source)
    assert [Path(source.path(int(row))).parent.name for row in split.rows] == ["red", "red_fox"]


def test_lines_take_the_published_form_only_where_it_says_enough(tmp_path):
    everything = np.arange(4)
    published = tree(tmp_path / "imagenet", {"n01440764": 2, "n01443537": 2})
    assert split_lines(published, everything[:3]) == ["n01440764_0.JPEG", "n01440764_1.JPEG", "n01443537_0.JPEG"]
    plain = tree(tmp_path / "plain", {"cat": 2, "dog": 2}, name="{index}.png")
    assert split_lines(plain, everything) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    foxes = tree(tmp_path / "foxes", {"red_fox": 2, "wolf": 2}, splits=False)
    assert split_lines(foxes, everything)[0] == "red_fox/red_fox_0.JPEG"
    for source in (published, plain, foxes):
        (tmp_path / "list.txt").write_text("\n".join(split_lines(source, everything[1:3])))
        assert read_label_split(tmp_path / "list.txt", source).rows.tolist() == [1, 2]


def test_draws_are_nested_seeded_and_differ(tmp_path):
    source = open_fashion("train")
    small, middle, large, share = draw_label_splits(source, per_class=(1, 2, 5), fractions=(0.01,), draw=1, seed=3)
    for split, count in ((small, 1), (middle, 2), (large, 5), (share, 10)):
        assert np.bincount(source.labels[split.rows]).tolist() == [count] * 10
        assert split.draw == 1
    for inner, outer in ((small, middle), (middle, large), (large, share)):
        assert set(inner.rows) < set(outer.rows)
    (alone,) = draw_label_splits(source, per_class=(5,), draw=1, seed=3)
    assert np.array_equal(alone.rows, large.rows)
    for seed, draw in ((3, 0), (3, 2), (4, 1)):
        (other,) = draw_label_splits(source, per_class=(5,), draw=draw, seed=seed)
        assert len(set(other.rows) & set(large.rows)) < 5  # independent, so nearly disjoint
    assert "seed 3, draw 2" in large.origin


def test_a_share_is_spread_as_the_published_one_is():
    """12,811 of 1,281,167 images: 811 classes give 13, 189 give 12, though classes have 732 to 1,300 images."""
    sizes = [1300] * 895 + [1142] + [1121] * 60 + [1061] * 44
    sizes[-1] += 1_281_167 - sum(sizes)
    source = in_memory(sizes)
    (split,) = draw_label_splits(source, fractions=(0.01,))
    assert np.bincount(np.bincount(source.labels[split.rows]))[12:].tolist() == [189, 811]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    fraction=st.floats(0.01, 1.0),
)
def test_shares_are_exact_and_even(sizes, fraction):
    source = in_memory(sizes)
    total = int(round(fraction * sum(sizes), 9))
    if not total:
        with pytest.raises(DataError, match="at least one"):
            draw_label_splits(source, fractions=(fraction,))
        return
    (split,) = draw_label_splits(source, fractions=(fraction,))
    counts = np.bincount(source.labels[split.rows], minlength=len(sizes))
    assert counts.sum() == total == len(set(split.rows))
    # Nobody gives two more than another who still has some.
    assert all(
        counts[i] <= counts[j] + 1 or counts[j] == sizes[j] for i in range(len(sizes)) for j in range(len(sizes))
    )


def test_unlabelled_images_are_never_drawn():
    source = in_memory([6, 6])
    source.labels[::2] = -1
    (split,) = draw_label_splits(source, per_class=(3,))
    assert split.rows.tolist() == [1, 3, 5, 7, 9, 11]


def test_images_on_the_skip_list_are_passed_over(tmp_path):
    tree(tmp_path / "plain", {"cat": 2, "dog": 2}, name="{index}.png", splits=False)
    write_skip_list(tmp_path / "plain" / SKIP_LIST_NAME, [SkipEntry("cat/1.png", None, "broken")])
    source = open_source(str(tmp_path / "plain"))
    (tmp_path / "a.txt").write_text("cat/0.png\ncat/1.png\ndog/0.png\n")
    assert listed(source, tmp_path / "a.txt") == {"0.png"}
    assert len(read_label_split(tmp_path / "a.txt", source).rows) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no images"),
        ("cat/0.png\ncat/7.png\ndog/8.png\n", r"2 of the 3 images in .* are not in the training split .*'cat/7.png'"),
        ("cat/0.png\ntrain/cat/0.png\n", "lists 'train/cat/0.png' twice"),
        ("wolf_1.JPEG\n", r"`<class>_<number>.JPEG` or `<class>/<file>`"),
        ("../val/cat/ILSVRC2012_val_00000001.JPEG\n", "not in the training split"),
        ("val/cat/ILSVRC2012_val_00000001.JPEG\n", "not in the training split"),
    ],
)
def test_lists_that_do_not_fit_are_sentences(tmp_path, text, sentence):
    source = tree(tmp_path / "plain", {"cat": 2, "dog": 2}, name="{index}.png")
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_label_split(tmp_path / "a.txt", source)


def test_other_faults_are_sentences(tmp_path):
    source = tree(tmp_path / "plain", {"cat": 3, "dog": 2}, name="{index}.png")
    with pytest.raises(DataError, match="can't read"):
        read_label_split(tmp_path / "nowhere.txt", source)
    with pytest.raises(DataError, match=r"3 images per class .* 1 of 2 classes of .* have fewer: 'dog' has 2"):
        draw_label_splits(source, per_class=(3,))
    with pytest.raises(DataError, match="at least 1"):
        draw_label_splits(source, per_class=(0,))
    for fraction in (0.0, 1.5, 0.1):
        with pytest.raises(DataError, match="share of the images"):
            draw_label_splits(source, fractions=(fraction,))
    with pytest.raises(DataError, match="not files with names"):
        read_label_split(tmp_path / "nowhere.txt", in_memory([2, 2]))
    unlabelled = in_memory([3])
    unlabelled.labels[:] = -1
    with pytest.raises(DataError, match="no labels to draw from"):
        draw_label_splits(unlabelled, per_class=(1,))
