import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.ops.distillation import class_token_loss, patch_token_loss, teacher_probabilities, update_center

sizes = st.integers(1, 4)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(crops=sizes, locals_=st.integers(1, 3), images=sizes, seed=st.integers(0, 99))
def test_the_class_loss_is_the_mean_over_pairs_of_different_views(
    crops: int, locals_: int, images: int, seed: int
) -> None:
    targets = logits(seed, crops, images, 6).softmax(-1)
    student = logits(seed + 1, crops + locals_, images, 6)
    pairs = [
        torch.nn.functional.cross_entropy(student[v] / 0.1, targets[q])
        for q in range(crops)
        for v in range(crops + locals_)
        if v != q
    ]
    torch.testing.assert_close(class_token_loss(targets, student, 0.1), torch.stack(pairs).mean(), rtol=1e-5, atol=1e-5)


@given(images=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_patch_loss_averages_within_images_first_and_counts_empty_ones(images: int, seed: int) -> None:
    mask = torch.rand(images, 7, generator=torch.Generator().manual_seed(seed)) < 0.3
    student, targets = logits(seed, images, 7, 5), logits(seed + 1, images, 7, 5).softmax(-1)
    entropies = torch.nn.functional.cross_entropy(student.mT / 0.1, targets.mT, reduction="none")
    expected = ((entropies * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    order = torch.randperm(int(mask.sum()))
    found = patch_token_loss(
        targets[mask][order], student[mask][order], 0.1, mask.nonzero()[:, 0][order], num_images=images
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_no_hidden_patch_is_no_loss_and_a_gradient_of_zero() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    loss = patch_token_loss(torch.zeros(0, 5), student, 0.1, torch.zeros(0, dtype=torch.int64), 3)
    loss.backward()
    assert loss == 0 and student.grad is not None


def test_losses_stay_float32_under_autocast() -> None:
    targets, student = logits(0, 2, 3, 6).softmax(-1), logits(1, 4, 3, 6)
    full = class_token_loss(targets, student, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(class_token_loss(targets, student, 0.1), full)
        assert teacher_probabilities(logits(2, 3, 4).bfloat16(), torch.zeros(1, 4), 0.04).dtype == torch.float32


def test_centre_and_temperature_shape_the_teacher() -> None:
    raw, center = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[[0.0, 0.0, 3.0]]])
    expected = torch.tensor([[1.0, 2.0, 1.0]]).div(0.5).softmax(-1)
    torch.testing.assert_close(teacher_probabilities(raw, center, 0.5), expected)
    update_center(center, torch.tensor([1.0, 1.0, 1.0]), 0.9)
    torch.testing.assert_close(center, torch.tensor([[[0.1, 0.1, 2.8]]]))
