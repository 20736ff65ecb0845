"""After the last step: the encoder's file, the number with its baselines, the pictures, the page."""

import logging
from pathlib import Path
from typing import NamedTuple

from halfseen.analysis.analyze import analyze
from halfseen.analysis.analyze_config import ANALYSES, AnalyzeConfig
from halfseen.analysis.findings import RANDOM_INIT, AnalyzedEncoder, file_name
from halfseen.analysis.reconstruct import reconstruct_images
from halfseen.backbones.weights import export_encoder
from halfseen.data.sources import Source, has_split, open_source
from halfseen.engine.precision import open_device
from halfseen.engine.terminal import Terminal
from halfseen.errors import DataError
from halfseen.evaluation.knn.protocol import knn_protocol
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import Subject
from halfseen.methods.base import Method
from halfseen.pretraining.build import untrained_encoder
from halfseen.pretraining.config import RunConfig
from halfseen.reports.analysis_files import FOLDER
from halfseen.reports.figures.analysis import draw_analysis, remove_figures
from halfseen.reports.figures.pictures import draw_reconstructions
from halfseen.reports.page import write_report

logger = logging.getLogger(__name__)

PICTURES = 8
MASK_RATIOS = (0.25, 0.5, 0.75, 0.9)
"""Shares of hidden patches at which a full analysis shows reconstructions, beside the method's own."""


class Harvest(NamedTuple):
    """What a finished run leaves beside its checkpoints: weights, evaluations, the page."""

    encoder: Path
    evaluations: tuple[Result, ...]
    report: Path


def finish(config: RunConfig, method: Method, source: Source, run_dir: Path, step: int, terminal: Terminal) -> Harvest:
    """After the last step: export, measure, draw, report."""
    device = str(open_device(config.runtime.device))
    extra = {"run": run_dir.name, "method": config.method.name, "step": step}
    mean, std = config.data.mean, config.data.std
    paths = {
        role: export_encoder(
            encoder,
            run_dir,
            mean=mean,
            std=std,
            role=role,
            extra=extra,
            stem="encoder" if role == method.main_role else f"encoder_{role}",
        )
        for role, encoder in method.encoders().items()
    }
    held_out = test_split(config)
    evaluations = []
    labelled = len(source.class_names) > 1
    if config.evaluate.knn and labelled:
        terminal.say("Measuring: k-NN of the encoder, of the untrained network and of raw pixels.")
        try:
            result = knn_of_run(config, method, source, held_out, run_dir, device)
        except DataError as error:
            terminal.say(f"No k-NN accuracy for this run: {error}")
        else:
            result.write(run_dir / "evaluations")
            evaluations.append(result)
    elif config.evaluate.knn:
        terminal.say(
            "The images have no labels (no first-level folders), so there is no k-NN accuracy. `halfseen knn` measures "
            "the encoder on any labelled folder."
        )
    own_ratio = getattr(config.method, "mask_ratio", None)  # Methods with a teacher predict no pixels and have none.
    others = [ratio for ratio in MASK_RATIOS if config.evaluate.analyze == "full" and ratio != own_ratio]
    pictures = reconstruct_images(
        method,
        source if held_out is None else held_out,
        mean=mean,
        std=std,
        image_size=config.data.image_size,
        crop_ratio=config.evaluate.crop_ratio,
        count=PICTURES,
        mask_ratios=(None, *others),
        seed=config.seed,
        device=device,
    )
    if pictures is not None:
        draw_reconstructions(pictures.write(run_dir / "figures"))
    if config.evaluate.analyze != "none":
        terminal.say("Analysing: the encoder beside the untrained network.")
        try:
            analyze_run(config, method, source, held_out, run_dir, device)
        except Exception as error:  # Training has ended well: no picture of it may take its report away.
            terminal.say(f"No analysis of this run: {error}. `halfseen analyze {run_dir}` tries again.")
            logger.info("The analysis failed.", exc_info=True)
    report = write_report(run_dir)
    return Harvest(paths[method.main_role], tuple(evaluations), report)


def knn_of_run(
    config: RunConfig, method: Method, source: Source, test: Source | None, run_dir: Path, device: str
) -> Result:
    """Weighted k-NN of the run's main encoder on its own data, with its other encoders beside it.

    The data is a labelled test split if there is one, else every image is classified by all the others.
    """
    encoders = dict(method.encoders())
    if test is not None and not (test.labels >= 0).any():
        test = None
    subject = Subject(
        encoders.pop(method.main_role),
        lambda: untrained_encoder(config),
        config.data.mean,
        config.data.std,
        str(run_dir / "encoder.safetensors"),
        role=method.main_role,
        others=encoders,
        pretrained_on=source.fingerprint(),
        device=device,
        precision=config.runtime.precision,
        workers=config.runtime.workers,
    )
    tested = None if test is None else Split(test, "test")
    return knn_protocol(subject, Split(source, "train"), tested, config.evaluate, seed=config.seed)


def analyze_run(
    config: RunConfig, method: Method, source: Source, test: Source | None, run_dir: Path, device: str
) -> Path:
    """The run's main encoder beside its untrained network, looked at from within: RUN/analysis.

    Args:
        test: images that it wasn't trained on; without any, those of `source` are looked at.
    Returns:
        `analysis.json`.
    """
    own, mean, std = config.evaluate, config.data.mean, config.data.std
    full = own.analyze == "full"
    settings = {"images": own.analyze_images, "resize": own.resize, "crop_ratio": own.crop_ratio, "tsne": full}
    encoder = method.encoders()[method.main_role]
    subjects = [
        AnalyzedEncoder(file_name(run_dir.name), encoder, mean, std, str(run_dir), method.main_role, method),
        AnalyzedEncoder(RANDOM_INIT, untrained_encoder(config), mean, std, f"{run_dir}, fresh weights"),
    ]
    found = analyze(
        subjects,
        source if test is None else test,
        AnalyzeConfig.model_validate(settings),
        [name for name in ANALYSES if full or name != "noise"],
        split="all" if test is None else "test",
        seed=config.seed,
        device=device,
        precision=config.runtime.precision,
        workers=config.runtime.workers,
    )
    summary = found.write(run_dir / FOLDER)
    if full:
        draw_analysis(summary)
    else:
        remove_figures(summary.parent)
    return summary


def test_split(config: RunConfig) -> Source | None:
    """The test images that belong to the run's data, if there are any."""
    if not has_split(config.data.source, "test"):
        return None
    return open_source(config.data.source, "test", config=config.data)
