"""How far and how variously each head looks, and maps of single queries."""

from collections.abc import Sequence

import numpy as np
import torch

from halfseen.analysis.attention import (
    attention_distance,
    attention_information,
    patch_distances,
    query_maps,
    uniform_distance,
)
from halfseen.analysis.watchers.base import Arrays, Found, Place, Rows, Watcher
from halfseen.backbones.base import BlockView
from halfseen.errors import ShapeError

NO_ATTENTION = (
    "this encoder's tokens attend within windows, so there is no map over all patches. Analyse a vit_* model for this."
)


class AttentionWatcher(Watcher):
    """Attention distance and mutual information of each head, and maps of single queries on the first images.

    Args:
        patch_size: side of a patch in pixels.
        shown: of how many images maps are kept.
        queries: (row, column) of the patches whose maps are kept; None = three places of any grid.
        class_token: whether the first prefix token is one, whose own map is kept too; registers have none of interest.
    """

    def __init__(
        self, patch_size: int, shown: int, queries: Sequence[tuple[int, int]] | None = None, *, class_token: bool
    ) -> None:
        self.patch_size, self.shown, self.queries, self.class_token = patch_size, shown, queries, class_token
        self._grid = (0, 0)
        self._distances = torch.empty(0)
        self._distance, self._information, self._maps = Rows(), Rows(), Rows()

    def block(self, view: BlockView, place: Place) -> None:
        if view.number == 0:
            return
        if view.attention is None:
            raise ShapeError(NO_ATTENTION)
        prefix = view.tokens.prefix.shape[1]
        among = view.attention[..., prefix:, prefix:]
        if not len(self._distances):
            self._grid = view.tokens.grid
            self._distances = patch_distances(self._grid, self.patch_size)
        self._distance.put(view.number, attention_distance(among, self._distances), place)
        self._information.put(view.number, attention_information(among), place)
        wanted = self.shown - place.first
        if wanted > 0:
            queries = default_queries(self._grid) if self.queries is None else self.queries
            looked = [query_maps(among[:wanted], query, self._grid) for query in queries]
            if self.class_token:
                own = view.attention[:wanted, :, 0, prefix:]
                looked.append((own / own.sum(dim=-1, keepdim=True)).reshape(*own.shape[:2], *self._grid))
            self._maps.put(view.number, torch.stack(looked, dim=2).half(), place, self.shown)

    def result(self) -> Found:
        distances = torch.stack(self._distance.all())  # [L, n, heads]
        information = torch.stack(self._information.all())
        uniform = uniform_distance(self._grid, self.patch_size)
        queries = default_queries(self._grid) if self.queries is None else self.queries
        arrays: Arrays = {
            "distance": distances.numpy(),
            "information": information.numpy(),
            "uniform_distance": np.asarray(uniform),
            "queries": np.asarray(queries, dtype=np.int64),
        }
        if maps := self._maps.all():
            arrays["maps"] = torch.stack(maps).numpy()  # [L, S, heads, queries (and class token), rows, columns]
        last = distances[-1].mean(), information[-1].double().mean()
        numbers = {
            "attention_distance_first": float(distances[0].mean()),
            "attention_distance_last": float(last[0]),
            "attention_distance_uniform": uniform,
            "attention_information_first": float(information[0].double().mean()),
            "attention_information_last": float(last[1]),
        }
        return Found(arrays, numbers)


def default_queries(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Three patches that look: the centre, upper left and lower right quarter."""
    rows, columns = grid
    return [(rows // 2, columns // 2), (rows // 4, columns // 4), (3 * rows // 4, 3 * columns // 4)]
