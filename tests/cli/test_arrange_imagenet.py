"""`halfseen data arrange-imagenet`: folders and archives, every mode, stops in the middle, what is refused."""

import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from command_line import environment
from halfseen.cli.main import run
from imagenet_kit import image_name, tar_of, write_devkit, write_images, write_labels, write_meta

IDS, WNIDS = [1, 2, 3], ["n02119789", "n02100735", "n01440764"]
LABELS = [3, 1, 3, 2, 1]
NUM_TRAIN = [2, 1, 3]
CONTENTS = [b"first", b"", b"the third", b"4", b"5" * 5000]
PLACES = [f"{WNIDS[label - 1]}/{image_name(number)}" for number, label in enumerate(LABELS, start=1)]


class Kit:
    """A flat folder `val`, and the files that say where its images belong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.src = write_images(folder / "val", CONTENTS)
        self.labels = write_labels(folder / "labels.txt", LABELS)
        self.meta = write_meta(folder / "meta.mat", IDS, WNIDS, num_train_images=NUM_TRAIN)
        self.words = ["--labels", str(self.labels), "--meta", str(self.meta)]

    def arrange(self, *words: str | Path) -> int:
        return run(["data", "arrange-imagenet", "--src", str(self.src), *self.words, *map(str, words)])

    def flat(self) -> list[str]:
        return sorted(file.name for file in self.src.iterdir() if file.is_file())


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if not file.is_dir()}


ARRANGED = dict(zip(PLACES, CONTENTS, strict=True))
FLAT = {image_name(number): content for number, content in enumerate(CONTENTS, start=1)}


def test_in_place_nothing_is_taken_away_unless_asked(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    assert kit.arrange() == 0
    assert contents(kit.src) == FLAT | ARRANGED
    heard = capsys.readouterr()
    assert f"Copied 5 images from {kit.src} into 3 class folders below {kit.src}.\n" in heard.out
    assert "--mode move takes them away" in heard.out
    assert "Warning: 5 labels; the published list has 50,000." in heard.err
    assert "Warning: 3 classes and inner nodes in meta.mat; the published one has 1,860." in heard.err
    assert kit.arrange("--mode", "move") == 0
    assert contents(kit.src) == ARRANGED


@pytest.mark.parametrize("mode", ["copy", "move", "symlink", "hardlink"])
def test_each_mode_into_another_folder_and_once_more(kit: Kit, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    dst = kit.folder / "new" / "place"
    for once_more in (False, True):
        assert kit.arrange("--dst", dst, "--mode", mode) == 0
        assert contents(dst) == ARRANGED
        assert kit.flat() == ([] if mode == "move" else sorted(FLAT))
        for place in PLACES:
            source, target = kit.src / Path(place).name, dst / place
            assert target.is_symlink() == (mode == "symlink")
            if mode != "move":
                assert target.samefile(source) == (mode != "copy")
        out = capsys.readouterr().out
        assert ("5 were there already" in out) == once_more
    if mode == "symlink":
        assert not (dst / PLACES[0]).readlink().is_absolute()
        kit.folder.rename(kit.folder.with_name("elsewhere"))
        assert contents(kit.folder.with_name("elsewhere") / "new" / "place") == ARRANGED


@pytest.mark.parametrize("first", ["copy", "symlink", "hardlink"])
def test_moving_after_another_mode_keeps_every_byte(kit: Kit, first: str) -> None:
    dst = kit.folder / "out"
    assert kit.arrange("--dst", dst, "--mode", first) == 0
    assert kit.arrange("--dst", dst, "--mode", "move") == 0
    assert contents(dst) == ARRANGED
    assert kit.flat() == []
    assert not any((dst / place).is_symlink() for place in PLACES)


def test_linked_sources_are_moved_as_links_that_still_lead_there(kit: Kit) -> None:
    real = kit.folder / "real.JPEG"
    (kit.src / image_name(1)).replace(real)
    (kit.src / image_name(1)).symlink_to("../real.JPEG")
    assert kit.arrange("--mode", "move") == 0
    assert contents(kit.src) == ARRANGED
    assert real.read_bytes() == CONTENTS[0]


def test_some_placed_some_not(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.src / WNIDS[2]).mkdir()
    (kit.src / image_name(1)).rename(kit.src / PLACES[0])
    (kit.src / WNIDS[0]).mkdir()
    (kit.src / PLACES[1]).symlink_to("nowhere")  # a link to nothing is no image
    (kit.src / WNIDS[2] / f".{image_name(3)}.partial").write_bytes(b"the th")  # of a run that was killed
    assert kit.arrange("--mode", "copy") == 0
    assert contents(kit.src) == ARRANGED | {name: content for name, content in FLAT.items() if name != image_name(1)}
    assert "Copied 4 images" in (out := capsys.readouterr().out)
    assert "1 were there already" in out


def test_a_dry_run_checks_all_and_touches_nothing(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    dst = kit.folder / "out"
    assert kit.arrange("--dst", dst, "--mode", "move", "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"Would move 5 images from {kit.src} into 3 class folders below {dst}.\nNothing was touched.\n" in out
    assert contents(kit.src) == FLAT
    assert not dst.exists()
    (kit.src / image_name(2)).unlink()
    assert kit.arrange("--dst", dst, "--dry-run") == 2


KILLED = """
import resource, signal, sys
from halfseen.cli.main import run
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # writing beyond the limit kills the process at once
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run(sys.argv[1:])
"""
LARGE = b"0123456789" * 30_000


def run_until_killed(*words: str | Path) -> None:
    """The command in a process that dies, without a chance to clean up, in the middle of writing `LARGE`."""
    command = [sys.executable, "-B", "-c", KILLED, "data", "arrange-imagenet", *map(str, words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGXFSZ, done.stderr


@pytest.mark.processes
def test_killed_in_the_middle_of_a_file_and_run_again(kit: Kit) -> None:
    (kit.src / image_name(3)).write_bytes(LARGE)
    out = kit.folder / "out"
    run_until_killed("--src", kit.src, *kit.words, "--dst", out)
    partial = f"{WNIDS[2]}/.{image_name(3)}.partial"
    found = contents(out)
    assert found.keys() == {*PLACES[:2], partial}
    assert found[partial] == LARGE[:100_000]
    assert kit.arrange("--dst", out) == 0
    assert contents(out) == ARRANGED | {PLACES[2]: LARGE}


def test_two_runs_at_once_are_refused(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(kit.src, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert kit.arrange() == 2
    os.close(handle)
    assert "another run of this command" in capsys.readouterr().err
    assert contents(kit.src) == FLAT


# The archives


TRAIN = {
    "n01440764.tar": {"n01440764_10026.JPEG": b"a", "n01440764_10027.JPEG": b"bb" * 700, "n01440764_9.JPEG": b""},
    "n02100735.tar": {"n02100735_7.JPEG": b"c"},
    "n02119789.tar": {"n02119789_1.JPEG": b"d", "n02119789_2.JPEG": b"e" * 513},
}
TRAIN_ARRANGED = {
    f"train/{name[:9]}/{inner}": content for name, each in TRAIN.items() for inner, content in each.items()
}


class Tars:
    """The three official archives, in their nested form."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dst = folder, folder / "imagenet"
        self.train = folder / "ILSVRC2012_img_train.tar"
        self.val = folder / "ILSVRC2012_img_val.tar"
        labels = write_labels(folder / "labels.txt", LABELS)
        meta = write_meta(folder / "meta.mat", IDS, WNIDS, num_train_images=NUM_TRAIN)
        self.devkit = write_devkit(folder / "ILSVRC2012_devkit_t12.tar.gz", labels, meta)
        self.write_train(TRAIN)
        # Not in the order of their numbers: an archive may have any.
        self.val.write_bytes(tar_of(dict(sorted(FLAT.items(), reverse=True))))

    def write_train(self, classes: Mapping[str, Mapping[str, bytes | tarfile.TarInfo]]) -> None:
        self.train.write_bytes(tar_of({name: tar_of(each) for name, each in classes.items()}))

    def unpack(self, *words: str | Path, train: bool = True, val: bool = True, devkit: bool = True) -> int:
        archives = [
            *(("--train-tar", self.train) if train else ()),
            *(("--val-tar", self.val) if val else ()),
            *(("--devkit", self.devkit) if devkit else ()),
        ]
        return run(["data", "arrange-imagenet", "--dst", str(self.dst), *map(str, archives), *map(str, words)])


@pytest.fixture
def tars(tmp_path: Path) -> Tars:
    return Tars(tmp_path)


def test_the_three_archives_become_train_and_val(tars: Tars, capsys: pytest.CaptureFixture[str]) -> None:
    from halfseen.data.sources import open_source

    assert tars.unpack("--dry-run") == 0
    assert not tars.dst.exists()
    expected = TRAIN_ARRANGED | {f"val/{place}": content for place, content in ARRANGED.items()}
    for once_more in (False, True):
        assert tars.unpack() == 0
        assert contents(tars.dst) == expected
        out = capsys.readouterr().out
        assert ("5 were there already" in out and "6 were there already" in out) == once_more
    assert tars.train.exists() and tars.val.exists() and tars.devkit.exists()
    train = open_source(str(tars.dst), "train")
    assert (len(train), train.class_names) == (6, tuple(sorted(WNIDS)))
    assert len(open_source(str(tars.dst), "test")) == 5


def test_the_archives_one_by_one(tars: Tars) -> None:
    assert tars.unpack(val=False, devkit=False) == 0
    assert contents(tars.dst) == TRAIN_ARRANGED
    words = ["--labels", tars.folder / "labels.txt", "--meta", tars.folder / "meta.mat"]
    assert tars.unpack(*words, train=False, devkit=False) == 0
    assert len(contents(tars.dst)) == 11


def test_unpacking_goes_on_where_it_stopped(tars: Tars, capsys: pytest.CaptureFixture[str]) -> None:
    (tars.dst / "train" / "n01440764").mkdir(parents=True)
    (tars.dst / "train" / "n01440764" / "n01440764_10026.JPEG").write_bytes(b"a")
    (tars.dst / "train" / "n01440764" / ".n01440764_10027.JPEG.partial").write_bytes(b"b")
    assert tars.unpack(val=False) == 0
    assert contents(tars.dst) == TRAIN_ARRANGED
    assert "Copied 5 images" in (out := capsys.readouterr().out)
    assert "1 were there already" in out


@pytest.mark.processes
def test_unpacking_killed_in_the_middle_of_a_file_and_run_again(tars: Tars) -> None:
    tars.write_train(TRAIN | {"n02100735.tar": {"n02100735_7.JPEG": b"c", "n02100735_8.JPEG": LARGE}})
    run_until_killed("--train-tar", tars.train, "--dst", tars.dst)
    found = contents(tars.dst / "train")
    assert len(found) == 5
    assert found["n02100735/.n02100735_8.JPEG.partial"] == LARGE[:100_000]
    assert tars.unpack(val=False, devkit=False) == 0
    assert contents(tars.dst) == TRAIN_ARRANGED | {"train/n02100735/n02100735_8.JPEG": LARGE}


def link(name: str) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return about


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"../ILSVRC2012_val_00000001.JPEG": b"x"}, "holds the file '../ILSVRC2012_val_00000001.JPEG'"),
        ({"/ILSVRC2012_val_00000001.JPEG": b"x"}, "holds the file '/ILSVRC2012_val_00000001.JPEG'"),
        (FLAT | {"notes.txt": b"x"}, "holds the file 'notes.txt'"),
        (FLAT | {"./" + image_name(1): b"x"}, "holds a second"),
        ({name: link(name) for name in FLAT}, "is no plain file"),
        (dict(list(FLAT.items())[:4]), f"4 of the 5 images that the labels name.*missing: {image_name(5)}"),
        (FLAT | {image_name(6): b"x"}, f"5 labels but 6 images; without a label: {image_name(6)}"),
        ({}, "0 of the 5 images"),
    ],
)
def test_other_validation_archives_are_refused_and_nothing_is_written(
    tars: Tars, members: dict[str, bytes | tarfile.TarInfo], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tars.val.write_bytes(tar_of(members))
    refused(tars.unpack(), sentence, capsys)
    assert not tars.dst.exists()


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (TRAIN | {"n02119789.tar": {"../../evil": b"x"}}, "n02119789.tar holds the file '../../evil'"),
        (TRAIN | {"n02119789.tar": {"n02100735_8.JPEG": b"x"}}, "n02119789.tar holds the file 'n02100735_8.JPEG'"),
        (TRAIN | {"n02119789.tar": {"n02119789_1.JPEG": link("n02119789_1.JPEG")}}, "is no plain file"),
        (TRAIN | {"../n02119789.tar": {}}, "holds the file '../n02119789.tar'"),
        (TRAIN | {"n02119789.tar": {"n02119789_1.JPEG": b"d"}}, "n02119789.tar with 1 instead of 2 images"),
        ({name: TRAIN[name] for name in list(TRAIN)[:2]}, "n02119789.tar with 0 instead of 2 images"),
        (TRAIN | {"n03000000.tar": {"n03000000_1.JPEG": b"d"}}, "n03000000.tar with 1 instead of 0 images"),
        ({}, "holds no images"),
    ],
)
def test_other_training_archives_are_refused_and_nothing_is_written(
    tars: Tars,
    classes: dict[str, dict[str, bytes | tarfile.TarInfo]],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tars.write_train(classes)
    refused(tars.unpack(), sentence, capsys)
    assert not tars.dst.exists()


def test_damaged_archives_are_refused(tars: Tars, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {path: path.read_bytes() for path in (tars.train, tars.val, tars.devkit)}
    val = whole[tars.val]
    middle = val.index(b"ILSVRC2012_val_00000003")
    for path, content in (
        (tars.train, whole[tars.train][:6000]),
        (tars.train, b"no archive" * 100),
        (tars.val, val[: val.index(b"the third") + 3]),
        (tars.val, val[:middle] + b"\xff" * 512 + val[middle + 512 :]),
        (tars.val, b""),
        (tars.val, whole[tars.devkit]),  # compressed
        (tars.devkit, whole[tars.devkit][:300]),
        (tars.devkit, val),
        (tars.devkit, b"\x1f\x8bxxxxxxxxxxxxxx"),
    ):
        for each, kept in whole.items():
            each.write_bytes(kept)
        path.write_bytes(content)
        refused(tars.unpack(), str(path), capsys)
        assert not tars.dst.exists()
    tars.devkit.write_bytes(whole[tars.devkit])
    tars.val.unlink()
    refused(tars.unpack(), "can't read", capsys)


# What is refused


def refused(code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Warning:")]
    assert code == 2
    assert len(lines) == 1
    assert sentence in lines[0] or re.search(sentence, lines[0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no labels"),
        ("3\n1\n3\n2\n", f"4 labels but 5 images; without a label: {image_name(5)}"),
        ("3\n1\n3\n2\n1\n1\n", f"5 of the 6 images.*missing: {image_name(6)}"),
        ("3\n1\nthree\n2\n1\n", "line 3 of the labels is 'three'"),
        ("3\n1\n\n2\n1\n", "line 3 of the labels is ''"),
        ("3\n1\n3\n2\n4\n", "line 5 has the class number 4, which meta.mat doesn't know"),
        ("3\n1\n0\n2\n1\n", "line 3 of the labels is '0'"),
        ("\x00\x01\x02", "line 1 of the labels"),
    ],
)
def test_other_labels(kit: Kit, content: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    kit.labels.write_text(content)
    refused(kit.arrange("--mode", "move"), sentence, capsys)
    assert contents(kit.src) == FLAT


def write_other_mat(path: Path) -> None:
    from scipy.io import savemat

    savemat(path, {"something": [1, 2]})


def write_struct_without_wnid(path: Path) -> None:
    from scipy.io import savemat

    savemat(path, {"synsets": {"ILSVRC2012_ID": 1, "words": "x"}})


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (Path.unlink, r"--meta: can't read '.*meta\.mat' \(No such file"),
        (lambda path: path.write_bytes(b""), "can't be read as a MATLAB file"),
        (lambda path: path.write_text("3\n1\n" * 100), "can't be read as a MATLAB file"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "MATLAB file"),
        (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF"), "MATLAB file"),
        (write_other_mat, "without the struct array `synsets`"),
        (write_struct_without_wnid, "without the struct array `synsets`"),
        (lambda path: write_meta(path, IDS, ["../../..", *WNIDS[1:]]), "class 1 has the WNID '../../..'"),
        (lambda path: write_meta(path, [1, 2, 2], WNIDS), "class number 2 stands for n02100735 and for n01440764"),
        (lambda path: write_meta(path, [1, 2], WNIDS[:2]), "line 1 has the class number 3.*2 such lines"),
    ],
)
def test_other_meta_files(
    kit: Kit, write: Callable[[Path], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(kit.meta)
    refused(kit.arrange("--mode", "move"), sentence, capsys)
    assert contents(kit.src) == FLAT


def test_images_that_are_elsewhere_or_other_ones(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.src / image_name(4)).rename(kit.folder / "kept")
    refused(kit.arrange(), f"4 of the 5 images.*missing: {image_name(4)}", capsys)
    (kit.src / WNIDS[0]).mkdir()
    (kit.folder / "kept").rename(kit.src / WNIDS[0] / image_name(4))
    refused(kit.arrange(), rf"n02119789/{image_name(4)} \(labelled n02100735\)", capsys)
    (kit.src / WNIDS[0] / image_name(4)).rename(kit.src / image_name(4))
    (kit.src / WNIDS[2]).mkdir()
    (kit.src / PLACES[0]).write_bytes(b"fir")
    refused(kit.arrange(), "has 3 bytes, its source 5", capsys)
    (kit.src / PLACES[0]).write_bytes(b"FIRST")
    refused(kit.arrange("--mode", "move"), "as many bytes as .*but other ones", capsys)
    assert {name: contents(kit.src)[name] for name in FLAT} == FLAT
    (kit.src / PLACES[0]).unlink()
    (kit.src / PLACES[0]).mkdir()
    refused(kit.arrange(), "is not a file", capsys)


def test_targets_that_cannot_be_written(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.folder / "file").touch()
    refused(kit.arrange("--dst", kit.folder / "file"), "--dst: ", capsys)
    refused(kit.arrange("--dst", kit.folder / "file" / "below"), "--dst: ", capsys)
    (kit.src / WNIDS[0]).touch()
    refused(kit.arrange(), f"{WNIDS[0]}.*Move away what is in its way", capsys)
    refused(kit.arrange("--src", kit.folder / "nowhere"), "the folder '.*nowhere' can't be opened", capsys)
    refused(kit.arrange("--src", kit.folder / "file"), "is a file, a folder is expected", capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.folder / "closed").mkdir(mode=0o500)
    refused(kit.arrange("--dst", kit.folder / "closed"), "can't be written to", capsys)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_a_folder_that_is_on_no_disk(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    refused(kit.arrange("--dst", "/proc/images", "--mode", "copy"), "'/proc' can't be written to", capsys)


def test_a_disk_that_fills_up_in_the_middle(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files fails like a full disk: after some bytes of a file have been written."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code = kit.arrange("--dst", kit.folder / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    refused(code, r"4 of 5 files were placed and stay.*the same command then goes on", capsys)
    assert contents(kit.folder / "out") == dict(list(ARRANGED.items())[:4])
    assert kit.arrange("--dst", kit.folder / "out") == 0
    assert contents(kit.folder / "out") == ARRANGED


def test_too_little_room_is_said_before(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    with (kit.src / image_name(1)).open("wb") as file:
        file.truncate(1 << 43)  # a sparse file of 8 TiB
    refused(kit.arrange("--dst", kit.folder / "out"), r"GB have to be written .* only .* GB are free", capsys)
    assert not (kit.folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give either --src"),
        (["--src", "a", "--val-tar", "b", "--dst", "c"], "give either --src"),
        (["--val-tar", "a", "--devkit", "b"], "--dst: missing"),
        (["--val-tar", "a", "--devkit", "b", "--dst", "c", "--mode", "copy"], "--mode: got 'copy'"),
        (["--src", "a", "--devkit", "b", "--meta", "c"], "--devkit: it holds the labels"),
        (["--src", "a", "--labels", "b"], "--meta: missing"),
        (["--src", "a", "--meta", "b"], "--labels: missing"),
        (["--train-tar", "a", "--labels", "b", "--dst", "c"], "--labels: they belong to validation images"),
        (["--src", "a", "--devkit", "b", "--mode", "mv"], "--mode: unknown 'mv'. Known: copy, move"),
        (["--src", "a", "--devkit", "nowhere"], "--devkit: can't read 'nowhere'"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(["data", "arrange-imagenet", *words]), sentence, capsys)
