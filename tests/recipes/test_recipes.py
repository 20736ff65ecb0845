"""Every recipe is complete, valid, explained, and holds the numbers of its paper."""

import re
import shlex

import pytest

from halfseen.backbones.build import build_encoder
from halfseen.cli.arguments import sort_words
from halfseen.config.load import Layer, dump_config, load_config
from halfseen.config.recipes import recipe_comment, recipe_layer, recipe_names
from halfseen.config.yaml_text import parse_settings
from halfseen.engine.config import TrainConfig
from halfseen.errors import ConfigError
from halfseen.masking.crops import needs_attention
from halfseen.methods.table import METHODS, build_method
from halfseen.pretraining.config import RunConfig, load_run_config

NAMES = recipe_names()
PUBLISHED = [name for name in NAMES if "imagenet1k" in name]
CONFIGS = {name: load_run_config(name).config for name in NAMES}


def peak(train: TrainConfig) -> float:
    """The learning rate after the warm-up."""
    reference = train.lr.reference_batch
    return train.lr.base * (1 if reference is None else train.batch_size / reference)


def test_all_published_recipes_are_there() -> None:
    wanted = {f"simmim_{rest}" for rest in (
        "swin_base_imagenet1k_100ep", "swin_base_imagenet1k_800ep", "swin_large_imagenet1k_800ep",
        "vit_base_imagenet1k_800ep",
    )}  # fmt: skip
    wanted |= {
        f"simmim_viny_4m_imagenet1k_100ep_{size}{end}" for size in ("45k", "100k", "200k") for end in ("", "_paper")
    }
    for model in ("base", "large", "huge"):
        wanted |= {f"mae_vit_{model}_imagenet1k_{n}ep{end}" for n in (800, 1600) for end in ("", "_pixels")}
    for model in ("vit_tiny", "vit_small", "vit_base", "swin_tiny", "swin_base"):
        wanted |= {f"kamim_{model}_imagenet1k_110ep", f"simmim_{model}_imagenet1k_110ep_kamimprotocol"}
    wanted |= {f"ibot_vit_{rest}" for rest in (
        "small_imagenet1k_800ep", "small_imagenet1k_300ep", "small_imagenet1k_100ep", "base_imagenet1k_400ep",
        "base_imagenet1k_400ep_random", "large_imagenet1k_250ep", "large_imagenet1k_250ep_random",
    )}  # fmt: skip
    wanted |= {f"ibot_swin_tiny_imagenet1k_300ep{end}" for end in ("", "_window14")}
    wanted |= {f"dino_vit_small_imagenet1k_{n}ep" for n in (100, 800)}
    wanted |= {f"attmask_vit_small_imagenet1k_{rest}" for rest in (
        "100ep_hint", "100ep_high", "300ep_high", "100ep_20percent_hint", "100ep_20percent_high",
    )}  # fmt: skip
    wanted |= {f"attmask_vit_small_imagenet1k_100ep_thesis_{strategy}" for strategy in (
        "raw", "raw_layer5", "log", "power", "rollout_all", "rollout_mid", "rollout_last", "multilayer", "multicrop",
        "contrastive",
    )}  # fmt: skip
    for rest in ("small_imagenet1k_800ep", "base_imagenet1k_600ep", "large_imagenet1k_600ep",
                 "base_imagenet1k_300ep_patch4", "large_imagenet1k_200ep_patch7"):  # fmt: skip
        wanted |= {f"msn_vit_{rest}{end}" for end in ("", "_nosinkhorn")}
    wanted |= {f"localmim_vit_base_imagenet1k_{n}ep" for n in (100, 200, 400, 1600)}
    wanted |= {f"localmim_{rest}" for rest in (
        "vit_base_imagenet1k_100ep_allstages", "vit_large_imagenet1k_800ep", "swin_base_imagenet1k_100ep",
        "swin_base_imagenet1k_400ep", "swin_base_imagenet1k_400ep_pixels", "swin_large_imagenet1k_800ep",
    )}  # fmt: skip
    assert wanted <= set(NAMES)


def test_every_method_has_a_small_recipe() -> None:
    assert {f"{method}_small" for method in METHODS} <= set(NAMES)


def called(name: str) -> str:
    """The method as a recipe's name has it: DINO is iBOT without patches, AttMask is iBOT with attention masks."""
    method = CONFIGS[name].method
    if method.name == "ibot" and method.lambda2 == 0:
        return "dino"
    return "attmask" if method.name == "ibot" and needs_attention(method.mask) else method.name


@pytest.mark.parametrize("name", NAMES)
def test_the_name_says_what_is_inside(name: str) -> None:
    config = CONFIGS[name]
    assert name.startswith(f"{called(name)}_")
    if name in PUBLISHED:
        model = config.model.name.removeprefix("simmim_")
        assert name.startswith(f"{called(name)}_{model}_imagenet1k_{config.train.epochs:.0f}ep")
        assert config.data.source == "imagenet/train"
    else:
        assert re.fullmatch(r"[a-z]+_small(_64px|_scenes)?", name)
        assert config.data.source.startswith("bundled:")
        assert config.train.batch_size <= 128


@pytest.mark.parametrize("name", NAMES)
def test_the_opening_comment_explains(name: str) -> None:
    lines = recipe_comment(name)
    text = " ".join(lines)
    assert len(lines[0]) <= 80
    for part in ("Command: halfseen pretrain ", "Expected: ", "Cost: ", "Not from "):
        assert part in text
    assert re.search(r"\d{4}\.\d{5}", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_the_comment_is_right(name: str) -> None:
    line = next(line for line in recipe_comment(name) if line.startswith("Command: "))
    words = shlex.split(line.removeprefix("Command: halfseen pretrain "))
    options = {words[at]: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
    assert options.pop("--recipe") == name
    devices = int(options.pop("--devices", "1"))
    assert options == {}
    found = sort_words(
        [w for at, w in enumerate(words) if not w.startswith("--") and not words[at - 1].startswith("--")]
    )
    config = load_run_config(name, None, found.overrides).config
    assert found.data == config.data.source
    # LocalMIM's Swin draws one mask for the 256 images of a process; smaller parts would be another method.
    most = 256 if config.method.name == "localmim" and config.model.name.startswith("swin") else 128
    assert config.train.split(devices).micro_batch_size <= most


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_sets_each_key_once_and_survives_being_written(name: str) -> None:
    text = dump_config(CONFIGS[name])
    assert load_config(RunConfig, [Layer("written", parse_settings(text, name))]).config == CONFIGS[name]
    keys = recipe_layer(name).values
    assert list(keys)[:4] == ["seed", "data", "method", "model"]
    assert "runtime" not in keys


def kind(name: str) -> tuple[object, ...]:
    """What decides whether sizes go together."""
    config = CONFIGS[name]
    model = config.model
    return (config.data.image_size, config.method, model.name, model.patch_size, model.window_size)


ONE_OF_EACH_KIND = list({kind(name): name for name in NAMES}.values())


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_image_patch_mask_and_window_go_together(name: str) -> None:
    """Builds the real method, as few blocks deep as it can be."""
    config = CONFIGS[name]
    blocks = 12 if called(name) == "attmask" else 1  # Attention masks name layers, and so do taps.
    if config.method.name == "localmim":
        blocks = config.method.taps[-1] if config.method.taps else 7
    shallow = {"depths": (1,) * 4} if config.model.name.startswith("swin") else {"depth": blocks}
    encoder = build_encoder(config.model.model_copy(update=shallow), config.data.image_size)
    method = build_method(config.method, encoder, config.data.image_size, config.data.mean, config.data.std)
    assert method.view_plan().views[0].size == config.data.image_size


@pytest.mark.parametrize(
    ("name", "lr", "start", "low", "epochs", "warmup", "size", "window", "drop_path"),
    [
        # Values per 2048 images: four times those of the paper's table, which are per 512.
        ("simmim_swin_base_imagenet1k_100ep", 8e-4, 4e-6, 4e-5, 100, 10, 192, 6, 0.0),
        ("simmim_swin_base_imagenet1k_800ep", 4e-4, 2e-6, None, 800, 10, 192, 6, 0.0),
        ("simmim_swin_large_imagenet1k_800ep", 4e-4, 2e-6, None, 800, 10, 192, 12, 0.0),
        ("simmim_vit_base_imagenet1k_800ep", 4e-4, 2e-6, None, 800, 10, 224, None, 0.1),
    ],
)
def test_simmim_has_the_official_numbers(
    name: str,
    lr: float,
    start: float,
    low: float | None,
    epochs: int,
    warmup: int,
    size: int,
    window: int | None,
    drop_path: float,
) -> None:
    config = CONFIGS[name]
    train = config.train
    scale = train.batch_size / 512
    assert train.batch_size == 2048
    assert train.lr.scale_all
    assert train.lr.lag_steps == 1
    assert peak(train) == pytest.approx(lr)
    assert train.lr.warmup_start * scale == pytest.approx(start)
    if low is None:
        assert (train.lr.schedule, train.lr.milestones, train.lr.gamma) == ("multistep", (700,), 0.1)
    else:
        assert train.lr.schedule == "simmim_cosine"
        assert train.lr.min * scale == pytest.approx(low)
    assert (train.epochs, train.lr.warmup_epochs, train.clip_norm) == (epochs, warmup, 5.0)
    assert (train.optimizer.betas, train.optimizer.eps, train.optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 0.05)
    assert (config.data.image_size, config.model.window_size, config.model.drop_path) == (size, window, drop_path)
    assert (config.method.mask_ratio, config.method.crop_scale) == (0.6, (0.67, 1.0))
    assert config.method.name == "simmim"
    assert config.method.mask_cell_size == 32


@pytest.mark.parametrize(("end", "lr", "gamma"), [("", 1e-3, 0.5), ("_paper", 1e-4, 0.1)])
@pytest.mark.parametrize(("size", "images"), [("45k", 45_000), ("100k", 100_000), ("200k", 200_000)])
def test_viny_has_the_numbers_of_code_and_paper(size: str, images: int, end: str, lr: float, gamma: float) -> None:
    config = CONFIGS[f"simmim_viny_4m_imagenet1k_100ep_{size}{end}"]
    train = config.train
    assert config.data.subset_size == images
    assert config.data.image_size == 128
    assert (peak(train), train.lr.gamma, train.lr.milestones, train.lr.warmup_epochs) == (lr, gamma, (50, 85), 0)
    assert (train.epochs, train.batch_size, train.clip_norm) == (100, 64, None)
    assert (train.optimizer.weight_decay, train.optimizer.decay_all) == (0.05, True)
    method = config.method
    assert method.name == "simmim"
    assert (method.mask_ratio, method.mask_cell_size, method.mask_rounding) == (0.5, None, "floor")
    assert (method.decoder, method.divide_twice) == ("linear", True)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("mae")])
def test_mae_has_the_official_numbers(name: str) -> None:
    config = CONFIGS[name]
    train, method = config.train, config.method
    assert method.name == "mae"
    assert (method.mask_ratio, method.norm_pix_loss, method.crop_scale) == (
        0.75, not name.endswith("_pixels"), (0.2, 1.0)
    )  # fmt: skip
    assert (method.decoder_embed_dim, method.decoder_depth, method.decoder_num_heads) == (512, 8, 16)
    assert (train.batch_size, train.lr.warmup_epochs, train.lr.min, train.clip_norm) == (4096, 40, 0.0, None)
    assert (train.lr.schedule, train.lr.lag_steps) == ("mae_cosine", 0)
    assert peak(train) == pytest.approx(2.4e-3)
    assert (train.optimizer.betas, train.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert config.model.patch_size == (14 if "huge" in name else 16)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("localmim")])
def test_localmim_has_the_official_numbers(name: str) -> None:
    config = CONFIGS[name]
    train, method, model = config.train, config.method, config.model
    assert method.name == "localmim"
    swin, large = "swin" in name, "large" in name
    lr, batch = {
        "vit_base": (1.6e-3, 2048), "vit_large": (2.4e-3, 4096), "swin_base": (8e-4, 2048), "swin_large": (1.6e-3, 4096)
    }[model.name]  # fmt: skip
    assert (peak(train), train.batch_size) == (pytest.approx(lr), batch)
    assert train.lr.min == (0.0 if swin else 1e-6)
    assert train.lr.warmup_epochs == (10 if train.epochs == 100 else 40)
    assert (train.lr.schedule, train.lr.lag_steps, train.clip_norm) == ("mae_cosine", 0, None)
    assert (train.optimizer.betas, train.optimizer.eps, train.optimizer.weight_decay) == ((0.9, 0.95), 1e-8, 0.05)
    assert (method.mask_ratio, method.crop_scale, config.data.image_size) == (0.75, (0.2, 1.0), 224)
    if name.endswith("_pixels"):
        assert (method.target.kind, method.norm_pix_loss) == ("pixels", True)
    else:
        assert (method.target.bins, method.target.bias) == ((18, True) if swin or large else (9, False))
    decoder = (method.decoder_embed_dim, method.decoder_depth, method.decoder_num_heads)
    assert decoder == ((128, 1, 4) if swin else (256, 1, 8))
    if swin:
        assert (model.window_size, model.norm_eps, method.coords) == (14 if large else 7, 1e-6, "reference")
    assert (method.taps is None) != name.endswith("_allstages")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "kamim" in name])
def test_kamim_and_its_baseline_have_the_original_numbers(name: str) -> None:
    config = CONFIGS[name]
    train, lr, method = config.train, config.train.lr, config.method
    assert train.epochs == (lr.epochs or 0) + lr.warmup_epochs
    assert (lr.warmup_epochs, peak(train), lr.warmup_start, lr.min) == (10, 8e-4, 1e-6, 1e-5)
    assert (lr.schedule, lr.lag_steps) == ("kamim_cosine", 1)
    assert (train.batch_size, train.clip_norm, train.drop_last) == (2048, 1.0, False)
    assert train.unscaled_accumulation == 8
    assert (train.optimizer.betas, train.optimizer.weight_decay) == ((0.9, 0.999), 0.05)
    assert (method.mask_ratio, method.crop_scale, method.hflip, method.vflip) == (0.6, (0.67, 1.0), 0.5, 0.5)
    assert (method.interpolation, method.antialias) == ("bilinear", False)
    assert config.model.norm_eps == (None if "swin" in name else 1e-12)
    assert config.data.image_size == (224 if "810ep" in name else 192)
    if method.name == "kamim":
        assert (method.decay, train.optimizer.decay_all) == ("all", False)
        assert (method.detector, method.weight_patch_size, method.temperature) == ("fast", 8, 0.25)
        assert (method.footprint, method.channel_order) == ("ring", "reference")
    else:
        assert method.name == "simmim"
        assert train.optimizer.decay_all
        assert method.loss_weight.kind == "uniform"


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("kamim_vit_tiny_imagenet1k_110ep", "method.decay=matrices"),
        ("simmim_swin_tiny_imagenet1k_110ep_kamimprotocol", "method.decay_exclude_position_bias=true"),
        ("msn_vit_small_imagenet1k_800ep", "method.decay_exclude_tokens=true"),
    ],
)
def test_a_methods_own_decay_setting_is_never_overruled_in_silence(name: str, override: str) -> None:
    load_run_config(name, None, [override, "train.optimizer.decay_all=false"])
    with pytest.raises(ConfigError, match=r"no effect with train\.optimizer\.decay_all=true"):
        load_run_config(name, None, [override, "train.optimizer.decay_all=true"])


def test_dino_falls_out_of_a_recipe_for_ibot() -> None:
    method = load_run_config(
        "ibot_small", None, ["method.lambda2=0", "method.use_masked_im_modeling=false"]
    ).config.method
    assert method.model_dump(exclude={"norm_in_head"}) == CONFIGS["dino_small"].method.model_dump(
        exclude={"norm_in_head"}
    )
