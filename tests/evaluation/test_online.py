"""k-NN during training: right numbers, and no trace in the training."""

import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.sources import open_source
from halfseen.evaluation.knn.protocol import knn_protocol
from halfseen.evaluation.online import OnlineSplits, online_knn
from halfseen.evaluation.results import EvaluateConfig
from halfseen.evaluation.statements import Split
from halfseen.evaluation.subject import Subject

MEAN = STD = (0.5, 0.5, 0.5)
CONFIG = EvaluateConfig(online_max_train=300, online_max_test=100, crop_ratio=1.0, k=(5, 20))


def encoder(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_encoder(ModelConfig(name="vit_tiny", patch_size=7, embed_dim=32, depth=1, num_heads=2), 28)


def test_it_gives_what_the_protocol_gives_and_leaves_modes_and_random_numbers_alone() -> None:
    student, teacher = encoder(0).train(), encoder(1).train()
    student.trunk.blocks[0].eval()
    train = open_source("bundled:fashion", "train").subset(range(900))
    test = open_source("bundled:fashion", "test").subset(range(200))
    arguments = {"mean": MEAN, "std": STD, "image_size": 28, "seed": 0, "device": "cpu", "precision": "fp32"}
    measure = online_knn({"student": student, "teacher": teacher}, OnlineSplits(train, test), CONFIG, **arguments)
    state = torch.get_rng_state()
    found = measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert student.training and teacher.training and not student.trunk.blocks[0].training
    assert set(found) == {"knn_student", "knn_teacher"} and found["knn_student"] != found["knn_teacher"]
    assert 20 < found["knn_student"] < 95

    everything = CONFIG.model_copy(update={"online_max_train": 900, "online_max_test": 200})
    whole = online_knn({"student": student}, OnlineSplits(train, test), everything, **arguments)()
    subject = Subject(student, None, MEAN, STD, "here", others={"teacher": teacher})
    result = knn_protocol(subject, Split(train, "train"), Split(test, "test"), CONFIG)
    assert whole == {"knn_student": result.metrics["top1_k20"]}
    assert list(result.baselines) == ["teacher", "raw_pixels"]


def test_without_a_test_split_every_image_is_classified_by_the_others() -> None:
    train = open_source("bundled:fashion", "test")
    measure = online_knn(
        {"student": encoder(0)}, OnlineSplits(train, None), CONFIG, mean=MEAN, std=STD, image_size=28, seed=0,
        device="cpu", precision="fp32",
    )  # fmt: skip
    assert measure() == measure()
