"""`halfseen recipes list / show / diff`."""

from pathlib import Path

import pytest

from halfseen.cli.main import run
from halfseen.config.load import load_config
from halfseen.config.recipes import recipe_layer, recipe_names
from halfseen.config.yaml_text import parse_settings
from halfseen.pretraining.config import RunConfig


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["recipes", *words]) == 0
    heard = capsys.readouterr()
    assert heard.err == ""
    return heard.out


def test_the_list_has_a_row_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split()[0]: line for line in printed(capsys, "list").splitlines() if line.split()}
    assert set(recipe_names()) <= set(rows)
    assert rows["mae_vit_huge_imagenet1k_1600ep"].split()[1:6] == ["mae", "vit_huge", "224", "1600", "4096"]
    assert "arXiv 2111.06377" in rows["mae_vit_huge_imagenet1k_1600ep"]


def test_bare_names_come_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "list", "--names").splitlines() == recipe_names()


def test_what_is_shown_is_complete_and_loads_equal(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "kamim_small", "seed=7")
    assert text.startswith("# KAMIM ")
    assert "seed: 7  # override\n" in text
    assert "  name: kamim  # recipe kamim_small\n" in text
    assert "  footprint: ring\n" in text
    shown = parse_settings(text, "shown")
    layer = recipe_layer("kamim_small")
    wanted = load_config(RunConfig, [layer], ["seed=7"]).config
    assert load_config(RunConfig, [layer._replace(values=shown)]).config == wanted


def test_a_file_and_a_run_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("method: {name: mae}\ntrain: {epochs: 3}\n")
    for word in (str(tmp_path), str(tmp_path / "config.yaml")):
        assert "epochs: 3.0  # file" in printed(capsys, "show", word)


def test_the_difference_is_only_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("simmim_swin_base_imagenet1k_800ep", "simmim_swin_large_imagenet1k_800ep")
    rows = [line.split() for line in printed(capsys, "diff", *names).splitlines()[3:] if line.split()]
    assert rows == [["model.name", "'swin_base'", "'swin_large'"], ["model.window_size", "6", "12"]]
    assert printed(capsys, "diff", "mae_small", "mae_small") == "mae_small and mae_small do not differ.\n"


def test_settings_of_two_methods_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in printed(capsys, "diff", "mae_small", "simmim_small").splitlines()]
    sides = {row[0]: row[1:] for row in rows if row}
    assert sides["method.name"] == ["'mae'", "'simmim'"]
    assert sides["method.mask_cell_size"][0] == "-"
    assert sides["method.norm_pix_loss"][1] == "-"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["show", "mae_small.yaml"],
            "recipe: got 'mae_small.yaml', expected a recipe's name. Give files with --config",
        ),
        (["show", "mae_small", "train.epoch=3"], "train.epoch: unknown key. Did you mean 'train.epochs'?"),
        (["diff", "mae_small", "mae_smell"], "recipe: unknown 'mae_smell'. Did you mean 'mae_small'"),
        (["show", "mae_small", "method.name=simmim"], "method.name: got 'simmim', but recipe mae_small sets keys that"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"'{tmp_path}': no config.yaml in this folder, so it is not a run.\n"
