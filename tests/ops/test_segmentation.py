import torch

from halfseen.ops.segmentation import class_map, pixel_labels, pixel_scores, segmentation_loss


def test_scores_are_class_major_and_maps_follow_the_labels() -> None:
    labels = torch.randint(0, 3, (2, 1, 8, 12))
    patches = pixel_labels(labels, 4)
    assert patches.shape == (2, 6, 16)
    one_hot = torch.nn.functional.one_hot(patches, 3).float()  # [B, N, p2, K]
    outputs = one_hot.transpose(2, 3).flatten(2)  # class, then row and column
    scores = pixel_scores(outputs, 3, "plain")
    assert torch.equal(class_map(scores, (2, 3)), labels[:, 0])
    perfect = segmentation_loss(100 * scores, patches)
    assert float(perfect) < 1e-6


def test_the_faithful_shift_is_one_number_per_image_and_class() -> None:
    outputs = torch.randn(2, 6, 3 * 16)
    shift = pixel_scores(outputs, 3) - pixel_scores(outputs, 3, "plain")
    constant = shift.flatten(2)
    torch.testing.assert_close(constant, constant[:, :, :1].expand_as(constant), rtol=0, atol=1e-5)
    total = pixel_scores(outputs, 3).flatten(2).exp().sum(2)
    torch.testing.assert_close(total, torch.ones(2, 3))
