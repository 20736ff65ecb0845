"""Self-distillation: a student's softmax distributions are trained towards those of a teacher.

Probabilities P sum to one, so the cross-entropy -sum_k P_k log softmax(x)_k is logsumexp(x) - sum_k P_k x_k; the
logarithm of the softmax is never formed. Everything is float32, whatever the autocast of the caller.

Source: DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


def teacher_probabilities(
    logits: Float[Tensor, "*rows K"], center: Float32[Tensor, "..."], temperature: float
) -> Float32[Tensor, "*rows K"]:
    """Centred and sharpened distributions softmax((t - c) / tau).

    Args:
        logits: any float dtype.
        center: running mean of the logits, [K] with any leading ones.
        temperature: tau > 0 of the teacher; the smaller, the sharper.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return ((logits.float() - center.reshape(-1)) / temperature).softmax(dim=-1)


def class_token_loss(
    probabilities: Float32[Tensor, "G B K"], logits: Float[Tensor, "V B K"], temperature: float
) -> Float32[Tensor, ""]:
    """Cross-entropy of every student view with the teacher's view of every *other* global crop.

    1 / (G (V - 1)) sum over q != v of mean_b CE(P_q,b, x_v,b). The student's first G views are the teacher's crops, in
    the same order. The sums over the pairs are taken before the products: G + 1 products instead of G (V - 1).

    Args:
        probabilities: the teacher's, one row of images per global crop; no gradient flows into them.
        logits: the student's, G global crops first, then the local ones; V >= 2.
        temperature: tau > 0 of the student.
    """
    crops, views = len(probabilities), len(logits)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = logits.float() / temperature
        normaliser = scaled.logsumexp(dim=-1).mean(dim=1)  # [V]
        # A global view has one partner less than a local one: itself.
        log_sums = crops * normaliser.sum() - normaliser[:crops].sum()
        towards_all = (probabilities.sum(dim=0) * scaled.sum(dim=0)).sum(dim=-1).mean()
        towards_itself = (probabilities * scaled[:crops]).sum(dim=-1).mean(dim=1).sum()
        return (log_sums - towards_all + towards_itself) / (crops * (views - 1))


def patch_token_loss(
    probabilities: Float32[Tensor, "M K"],
    logits: Float[Tensor, "M K"],
    temperature: float,
    image_ids: Int64[Tensor, "M"],
    num_images: int,
) -> Float32[Tensor, ""]:
    """Cross-entropy at hidden patches: a mean over the patches of each image, then a mean over *all* images.

    An image without hidden patches counts as 0 in the second mean, as in the original.

    Args:
        probabilities: the teacher's at the hidden patches; no gradient flows into them.
        logits: the student's at the same patches.
        temperature: tau > 0 of the student.
        image_ids: the image of each patch, in [0, num_images), in any order.
        num_images: images of the batch over all crops, also those without a hidden patch.
    Returns:
        0 if nothing is hidden.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = logits.float() / temperature
        loss = scaled.logsumexp(dim=-1) - (probabilities * scaled).sum(dim=-1)
        hidden = torch.zeros(num_images, device=loss.device).index_add_(0, image_ids, torch.ones_like(loss.detach()))
        return (loss / hidden[image_ids]).sum() / num_images


@torch.no_grad()
def update_center(center: Float32[Tensor, "..."], mean: Float32[Tensor, "..."], momentum: float) -> None:
    """center <- momentum * center + (1 - momentum) * mean, in place.

    Args:
        center: of the teacher's logits.
        mean: of this step's raw logits over all crops, images and processes; as many values as `center`.
        momentum: share of the centre that stays, in [0, 1].
    """
    center.lerp_(mean.reshape(center.shape), 1.0 - momentum)
