"""How `halfseen pretrain` reads its words, and what it says when they are wrong. (Whole runs: tests/pretraining.)"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from halfseen.cli.arguments import add_override, override, run_dir_of, settings_file, sort_words
from halfseen.cli.main import run
from halfseen.cli.pretrain import resumed
from halfseen.config.load import dump_config, load_config, parse_override
from halfseen.config.recipes import recipe_layer
from halfseen.config.yaml_text import parse_value
from halfseen.engine.config import available_cores
from halfseen.engine.folder import write_environment
from halfseen.errors import ConfigError
from halfseen.methods.table import METHODS
from halfseen.pretraining.config import RunConfig


def test_data_and_settings_come_in_any_order() -> None:
    words = ["train.epochs=3", "my photos", "method.crop_scale=[0.5, 1]"]
    assert sort_words(words) == ("my photos", ["train.epochs=3", "method.crop_scale=[0.5, 1]"])
    assert sort_words([]) == (None, [])
    assert sort_words(["./a=b"]) == ("./a=b", [])


def test_two_data_sets_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"got 2 data sets \('photos', '=3'\).*Write key=value without blanks"):
        sort_words(["photos", "=3"])


@pytest.mark.parametrize("text", ["photos", "2024", "[x]", "null", "1e-4", "a 'b' \"c\"", "C:\\x", "#1", "true"])
def test_any_path_survives_as_an_override(text: str) -> None:
    assert parse_value(parse_override(override("data.source", text)).text) == text


def test_the_same_key_twice_is_refused() -> None:
    assert add_override(["seed=1"], "data.source", None, "DATA") == ["seed=1"]
    assert add_override(["seed=1"], "data.source", "x", "DATA") == ["data.source=x", "seed=1"]
    with pytest.raises(ConfigError, match=r"data\.source: given twice, by DATA \('x'\) and by data\.source=y"):
        add_override(["data.source=y"], "data.source", "x", "DATA")


def test_a_run_is_kept_where_it_is_told() -> None:
    assert run_dir_of(None, None) is None
    assert run_dir_of("first", None) == str(Path("runs") / "first")
    assert run_dir_of(None, "/tmp/x") == "/tmp/x"
    with pytest.raises(ConfigError, match="--name and --run-dir both"):
        run_dir_of("first", "/tmp/x")
    for name in ("", "a/b", "../x"):
        with pytest.raises(ConfigError, match="expected a plain name"):
            run_dir_of(name, None)


def test_settings_are_found_in_a_run_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml in this folder"):
        settings_file(str(tmp_path))
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert settings_file(str(tmp_path)) == settings_file(str(tmp_path / "config.yaml")) == tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="no such run or file"):
        settings_file(str(tmp_path / "none"))


@pytest.fixture
def stored_run(tmp_path: Path) -> Path:
    """A run's folder with its settings; its recipe was overridden in places."""
    overrides = ["seed=5", "method.mask_ratio=0.5", "train.batch_size=64", "data.image_size=28", "run_dir=elsewhere"]
    loaded = load_config(RunConfig, [recipe_layer("mae_small")], overrides)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(loaded.config, loaded.provenance))
    return folder


def test_a_resumed_run_has_its_own_settings_in_its_own_folder(stored_run: Path) -> None:
    config = resumed(str(stored_run), None, None, ["runtime.workers=2", "train.max_steps=7"]).config
    assert (config.seed, config.runtime.workers, config.train.max_steps) == (5, 2, 7)
    assert config.run_dir == str(stored_run)


@pytest.mark.parametrize(
    ("chosen", "before", "now", "words", "threads", "source"),
    [
        (False, 1, 1, [], 97, "default"),  # As it was, whatever the cores of this machine.
        (False, 2, 2, [], 97, "default"),
        (False, 2, 1, [], available_cores(), "default"),
        (False, 1, 10_000, [], 1, "default"),
        (False, 1, 10_000, ["runtime.threads=3"], 3, "override"),
        (True, 1, 10_000, [], 97, "run"),
    ],
)
def test_threads_that_nobody_chose_follow_the_number_of_processes(
    chosen: bool,
    before: int,
    now: int,
    words: list[str],
    threads: int,
    source: str,
    stored_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = stored_run / "config.yaml"
    settings.write_text(re.sub(r"threads: \d+", "threads: 97", settings.read_text()))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(before))
    write_environment(stored_run, None, threads_from_cores=not chosen)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(now))
    loaded = resumed(str(stored_run), None, None, words)
    assert loaded.config.runtime.threads == threads
    assert loaded.provenance["runtime.threads"].split()[0] == source


def test_a_run_of_which_nothing_is_known_keeps_its_threads(stored_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resumed(str(stored_run), None, None, []).config.runtime.threads
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "10000")
    assert resumed(str(stored_run), None, None, []).config.runtime.threads == before


def test_a_resumed_run_does_not_change_its_science(stored_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resumed(str(stored_run), None, None, ["train.batch_size=32", "method.mask_ratio=0.6", "seed=5"])
    assert str(caught.value).splitlines() == [
        f"method.mask_ratio: got 0.6, but the run in '{stored_run}' was started with 0.5. Leave it out to go on, or "
        "start a new run.",
        f"train.batch_size: got 32, but the run in '{stored_run}' was started with 64. Leave it out to go on, or start "
        "a new run.",
    ]
    with pytest.raises(ConfigError, match=r"^seed: got 0, but the run in"):
        resumed(str(stored_run), "mae_small", None, [])
    file = tmp_path / "other.yaml"
    file.write_text("data: {image_size: 56}  # Was 28.\n")
    with pytest.raises(ConfigError, match=r"^data\.image_size: got 56, but the run in"):
        resumed(str(stored_run), None, file, [])


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (["--recipe", "mae_smal"], ["recipe: unknown 'mae_smal'. Did you mean 'mae_small' or 'mae_small_64px'?"]),
        (["--config", "none.yaml"], ["'none.yaml': no such file. Give the path of a YAML file with settings."]),
        (["photos", "images"], ["got 2 data sets ('photos', 'images'), expected one DATA and key=value words."]),
        (["photos", "data.source=x"], ["data.source: given twice, by DATA ('photos') and by data.source=x."]),
        (["--resume", "runs/x", "--name", "y"], ["--resume goes on in the run's own folder."]),
        (["--resume", "runs/x"], ["'runs/x': no such run or file. Give a run's folder, such as runs/NAME."]),
        (
            ["method.name=mea"],
            [f"method.name: unknown 'mea'. Known: {', '.join(sorted(METHODS))}. Did you mean 'mae'?"],
        ),
        (
            ["--recipe", "mae_small", "method.mask_ratoi=0.5", "train.batch_size=many", "mask_ratio=1", "seed=1.5"],
            [
                "method.mask_ratoi: unknown key. Did you mean 'method.mask_ratio'?",
                "mask_ratio: unknown key. Did you mean 'method.mask_ratio'?",
                "seed: got 1.5, expected an integer >= 0.",
                "train.batch_size: got 'many', expected an integer >= 1.",
            ],
        ),
        (
            ["--recipe", "simmim_small", "method.mask_ratio=60", "method.decoder_depth=3"],
            [
                "method.mask_ratio: got 60, expected a float in (0, 1). Write 0.6 for 60 %.",
                "method.decoder_depth: a key of localmim, mae, not of 'simmim'. Leave it out, or choose another name.",
            ],
        ),
        (
            ["--recipe", "mae_small", "train.lr.milestones=[3]"],
            ["train.lr.milestones: got [3.0], but it has no effect with the schedule 'mae_cosine'."],
        ),
        (["--recipe", "mae_small", "model.name=vit_tinny"], ["model.name: unknown model 'vit_tinny'."]),
    ],
)
def test_wrong_words_are_sentences_and_leave_nothing(
    words: list[str],
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["pretrain", *words]) == 2
    heard = capsys.readouterr()
    assert heard.out == ""
    lines = heard.err.splitlines()
    assert len(lines) == len(sentences)
    for sentence in sentences:
        assert any(line.startswith(sentence) for line in lines), (sentence, lines)
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_only_the_first_speaks_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(["pretrain", "--recipe", "mae_smal"]) == 2
    assert capsys.readouterr().err == ""


@pytest.fixture
def beside_photos(tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a folder `photos` in it."""
    make_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_tells_settings_and_cost_and_writes_nothing(
    beside_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["data.image_size=28", "model.patch_size=7", "model.depth=1", "model.embed_dim=32", "model.num_heads=2"]
    tiny += ["train.batch_size=4", "train.epochs=2"]
    assert run(["pretrain", "photos", "--recipe", "mae_small", *tiny, "runtime.threads=1", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "source: photos  # override\n" in text
    assert "name: mae  # recipe mae_small\n" in text
    assert "20 of photos, seen at 28 px" in text
    assert "10 (5 per epoch), 4 images each" in text
    hidden, distance = re.search(r"masks +hide (\d+)% of the pixels, on average ([\d.]+) px .*AvgDist", text).groups()
    assert int(hidden) == 50
    assert 1 < float(distance) < 7
    assert [path.name for path in beside_photos.iterdir()] == ["photos"]


def test_a_dry_run_tells_what_activation_checkpointing_saves(
    beside_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["data.image_size=28", "model.patch_size=4", "model.depth=8", "model.embed_dim=32", "model.num_heads=2"]
    tiny += ["train.batch_size=4", "train.epochs=2", "runtime.threads=1", "--dry-run"]
    found = []
    for asked in ("false", "true"):
        words = ["photos", "--recipe", "simmim_small", *tiny, f"runtime.activation_checkpointing={asked}"]
        assert run(["pretrain", *words]) == 0
        found.append(float(re.search(r"([\d.]+) MB activations", capsys.readouterr().out).group(1)))
    plain, saving = found
    assert plain / 5 < saving < plain / 2  # One of eight blocks, and the inputs of all.


def test_a_dry_run_tells_when_what_freezes_and_what_that_saves(
    beside_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["data.image_size=32", "model.patch_size=8", "model.depth=7", "model.embed_dim=32", "model.num_heads=2"]
    tiny += ["train.batch_size=4", "train.epochs=10", "train.freeze.t0=0.5", "train.freeze.scale=linear"]
    tiny += ["method.scales=[4,2,1,0.5]", "method.taps=[2,4,5,7]", "runtime.threads=1"]
    assert run(["pretrain", "photos", "--recipe", "localmim_small_scenes", *tiny, "--dry-run"]) == 0
    text = capsys.readouterr().out
    rows = [line.replace(",", "").split() for line in text.splitlines() if line.rstrip().endswith("%")]
    assert [int(row[2]) for row in rows] == list(range(8))
    assert [int(row[3]) for row in rows] == [0, 0, 0, 1, 1, 2, 3, 3]
    # 50 steps, 5 of them warm-up: unit i freezes at the first step after 5 + 45 (0.5 + 0.5 i / 7).
    assert [int(row[0]) for row in rows] == [0] + [int(5 + 45 * (0.5 + 0.5 * unit / 7)) + 1 for unit in range(7)]
    for column in (-1, -2):
        shares = [int(row[column].rstrip("%")) for row in rows]
        assert shares[0] == 100 and shares == sorted(shares, reverse=True) and shares[-1] < 40
    assert re.search(r"freezing +saves about -?[\d.]+% of the time and \d\d\.\d% of the operations", text)


def test_wrong_words_through_the_real_command_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "halfseen",
        "pretrain",
        "--recipe",
        "mae_small",
        "train.epochs=ten",
        "modle.depth=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "modle.depth: unknown key. Did you mean 'model.depth'?",
        "train.epochs: got 'ten', expected a float > 0.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_a_split_that_training_would_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "bundled:fashion", "--recipe", "msn_small", "train.micro_batch_size=8", "runtime.threads=1"]
    assert run([*words, "--dry-run"]) == 2
    assert "train.micro_batch_size: got 8, but this method's loss is a statistic" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_an_image_left_over_that_has_no_batch_statistics_is_said_at_the_start(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "bundled:fashion", "--recipe", "msn_small", "data.subset_size=65", "train.batch_size=64"]
    assert run([*words, "train.drop_last=false", "runtime.threads=1", *flags]) == 2
    assert capsys.readouterr().err.startswith("train.batch_size: a step of 1 image, but batch norm")
    assert list(tmp_path.iterdir()) == []
