"""Features that linear probes see equal the recorded ones of iBOT's evaluation, through the importer: tolerance 1e-5.

`features*.npz`: `images`, and `feat_avgpool{a}_n{n}`: a = 0 class tokens of the last n blocks, 1 mean of the last
block's patch tokens before the norm (whatever n), 2 the n class tokens and the mean of the patch tokens.
`feature_backbone*.safetensors`: the weights; two heads, norms with eps 1e-6.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import import_checkpoint
from halfseen.evaluation.features import EncoderFeatures
from halfseen.evaluation.results import FeatureKind
from parity.discovery import companion, load_arrays, parity_files

NUM_HEADS = 2
EPS = 1e-6
KINDS: dict[str, FeatureKind] = {"0": "cls", "1": "mean-before-norm", "2": "cls+mean"}
NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("path", parity_files("knn_linear", "features"))
def test_features_of_the_last_blocks(path: Path) -> None:
    arrays = load_arrays(path)
    images = torch.from_numpy(arrays["images"])
    weights = companion(path.with_suffix(".safetensors"), "features", "feature_backbone")
    size = images.shape[-1]
    found = import_checkpoint(weights, image_size=size, num_heads=NUM_HEADS)
    config = ModelConfig.model_validate({**found.config.model_dump(), "norm_eps": EPS})
    found = import_checkpoint(weights, image_size=size, model=config)
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    encoder = found.build()
    assert encoder.num_heads == NUM_HEADS
    recorded = [name for name in arrays if name.startswith("feat_")]
    assert recorded
    for name in recorded:
        mode, n = re.fullmatch(r"feat_avgpool(\d)_n(\d+)", name).groups()
        last_blocks = 1 if mode == "1" else int(n)
        extract = EncoderFeatures(encoder, **NORMAL, feature=KINDS[mode], last_blocks=last_blocks)
        np.testing.assert_allclose(extract.of_images(images).numpy(), arrays[name], rtol=0, atol=1e-5, err_msg=name)
