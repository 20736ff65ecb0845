"""Settings of a run that nobody wrote."""

from pathlib import Path

import pytest

from halfseen.errors import ConfigError
from halfseen.pretraining.config import load_run_config
from halfseen.pretraining.folder import write_config
from halfseen.pretraining.run import resolve


@pytest.mark.parametrize(
    ("words", "rule", "source"),
    [
        (("method.name=ibot",), "scale_offset", "default of ibot"),
        (("method.name=msn", "model.name=vitc_4gf"), "scale", "default of msn"),
        (("method.name=ibot", "model.position_rule=size"), "size", "override"),
        (("method.name=ibot", "model.name=swin_tiny", "model.norm_eps=1e-6"), "size", "default"),
        (("method.name=mae",), "size", "default"),
    ],
)
def test_positions_are_resized_as_the_method_s_original_does(words: tuple[str, ...], rule: str, source: str) -> None:
    loaded = load_run_config(None, None, words)
    assert loaded.config.model.position_rule == rule
    assert loaded.provenance["model.position_rule"] == source


@pytest.mark.parametrize("method", ["ibot", "msn"])
def test_a_file_may_leave_them_out_and_what_a_run_has_written_stays(method: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method:\n  name: {method}\nmodel:\n  name: vit_tiny\n")
    assert load_run_config(None, file).config.model.position_rule == {"ibot": "scale_offset", "msn": "scale"}[method]
    loaded = load_run_config(None, file, ["model.position_rule=size"])
    write_config(tmp_path, loaded)
    assert load_run_config(None, tmp_path / "config.yaml").config == loaded.config


@pytest.mark.parametrize(("method", "rule"), [("ibot", "scale_offset"), ("msn", "scale"), ("mae", "size")])
def test_naming_a_method_alone_is_faithful_too(method: str, rule: str) -> None:
    assert resolve(None, None, [f"method.name={method}"]).config.model.position_rule == rule


@pytest.mark.parametrize(
    ("recipe", "words", "forgotten"),
    [
        ("ibot_small", ("train.clip_norm=null",), {"train.clip_scope": "global"}),
        ("ibot_small", ("train.optimizer.name=sgd",), {"train.optimizer.betas": (0.9, 0.95)}),
        ("ibot_small", ("train.optimizer.weight_decay_schedule=constant",), {"train.optimizer.weight_decay_end": None}),
        ("msn_small", ("train.lr.warmup_epochs=0",), {"train.lr.warmup_start": 0.0}),
        (
            "simmim_swin_base_imagenet1k_110ep_kamimprotocol",
            ("train.optimizer.weight_decay=0",),
            {"train.optimizer.decay_all": False},
        ),
        (
            "ibot_small",
            ("model.name=swin_tiny", "model.depths=[1,1]", "model.num_heads=4", "model.patch_size=2"),
            {"model.depth": None, "model.position_rule": "size"},
        ),
    ],
)
def test_a_recipe_gives_way_in_every_group(recipe: str, words: tuple[str, ...], forgotten: dict[str, object]) -> None:
    loaded = load_run_config(recipe, None, words)
    for key, value in forgotten.items():
        found: object = loaded.config
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value and not loaded.provenance[key].startswith("recipe"), key


def test_what_the_same_person_wrote_is_refused_in_every_group() -> None:
    with pytest.raises(ConfigError, match=r"train\.clip_scope: got tensor, but it has no effect with a run without"):
        load_run_config("ibot_small", None, ("train.clip_norm=null", "train.clip_scope=tensor"))
    with pytest.raises(ConfigError, match=r"model\.depth: no effect on model 'swin_tiny'"):
        load_run_config("ibot_small", None, ("model.name=swin_tiny", "model.depth=3"))
