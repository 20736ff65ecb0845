"""Tokens as points in the plane or as colours: principal components, and t-SNE by scikit-learn."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from halfseen.errors import ShapeError


class Components(NamedTuple):
    """Points along principal components.

    Attributes:
        points: float32 [n, k]; the direction of each component is arbitrary, here its largest point is positive.
        variance: float32 [k], unbiased variance along each component.
        share: float32 [k], of the whole variance.
    """

    points: Tensor
    variance: Tensor
    share: Tensor


def principal_components(rows: Float[Tensor, "n D"], count: int) -> Components:
    """The rows along the `count` directions in which they vary most.

    Raises:
        ShapeError: fewer rows or columns than components.
    """
    if min(rows.shape) < count or len(rows) < 2:
        raise ShapeError(f"principal components: got {len(rows)} rows of {rows.shape[1]} values, need {count} of each.")
    wide = rows.detach().cpu().double()
    wide = wide - wide.mean(dim=0)
    # The smaller Gram matrix has the same eigenvalues.
    if wide.shape[1] <= len(wide):
        values, directions = torch.linalg.eigh(wide.T @ wide)
        points = wide @ directions.flip(-1)[:, :count]
    else:
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        points = vectors.flip(-1)[:, :count] * values.flip(-1)[:count].clamp(min=0).sqrt()
    largest = points.gather(0, points.abs().argmax(dim=0, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)
    variance = values.flip(-1)[:count].clamp(min=0) / (len(wide) - 1)
    total = wide.square().sum() / (len(wide) - 1)
    return Components(points.float(), variance.float(), (variance / total).float())


def component_colours(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> UInt8[Tensor, "B rows columns 3"]:
    """The first three principal components of all images' tokens as red, green and blue, each over its whole range.

    The images share the components, so a colour means the same in all of them.

    Raises:
        ShapeError: fewer than three tokens or features.
    """
    points = principal_components(tokens.flatten(0, 1), 3).points
    low, high = torch.quantile(points, torch.tensor([0.01, 0.99]), dim=0)
    scaled = ((points - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours: Tensor = (scaled * 255).round().to(torch.uint8)
    return colours.reshape(len(tokens), *grid, 3)


def neighbour_embedding(rows: Float[Tensor, "n D"], seed: int = 0, perplexity: float = 20.0) -> Float[Tensor, "n 2"]:
    """t-SNE of some rows by scikit-learn with the settings of KAMIM's code, and a seed.

    Raises:
        ShapeError: no more rows than the perplexity.
    """
    if len(rows) <= perplexity:
        raise ShapeError(f"t-SNE: got {len(rows)} points, needs more than its perplexity of {perplexity:g}.")
    from sklearn.manifold import TSNE

    embed = TSNE(
        n_components=2, perplexity=perplexity, learning_rate="auto", init="random", max_iter=1000, random_state=seed
    )
    return torch.from_numpy(embed.fit_transform(rows.detach().float().cpu().numpy())).float()
