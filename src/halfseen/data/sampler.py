"""Which images a step sees: a function of (seed, epoch) alone, cut into the shares of processes and micro-batches."""

import numpy as np

from halfseen.errors import ConfigError, DataError
from halfseen.ops.randomness import numpy_generator


class StepSampler:
    """Shuffled passes over a data set, addressed by the step.

    Step s of an epoch takes rows [s * batch_size, (s + 1) * batch_size) of that epoch's permutation. Of these, process
    r of W takes the r-th of W equal slices, and its micro-batches are consecutive pieces of the slice; so any number of
    processes and micro-batches sees the same global batch, in the same rows. With `drop_last=False` the last batch of
    an epoch is smaller; its rows are shared out as evenly as whole numbers allow.

    Attributes:
        steps_per_epoch: updates in one pass over the data.
        batch_size: images per update, over all processes and micro-batches.
        micro_batch_size: images per forward pass on this process.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> None:
        """Raises:
        DataError: no images, or fewer than one batch.
        ConfigError: sizes that don't divide each other.
        """
        _check_sizes(num_images, batch_size, world_size, micro_batch_size)
        last = num_images % batch_size
        if not drop_last and 0 < last < world_size:
            raise ConfigError(
                f"train.drop_last: got false, but the last batch of an epoch holds {last} of {num_images} images and "
                f"can't feed {world_size} processes. Write train.drop_last=true or change train.batch_size."
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.micro_batch_size = micro_batch_size or batch_size // world_size
        self.steps_per_epoch = num_images // batch_size + (1 if last and not drop_last else 0)
        self._permutation: tuple[int, np.ndarray] | None = None

    @property
    def smallest_batch(self) -> int:
        """Images of an epoch's last step, over all processes; no other has fewer."""
        return self._global_size(self.steps_per_epoch - 1)

    def epoch(self, step: int) -> int:
        """Number of the pass over the data that `step` belongs to, from 0."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> tuple[int, int]:
        """First and one past the last row of the step's global batch that are this process's."""
        size = self._global_size(step)
        return size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size

    def indices(self, step: int) -> np.ndarray:
        """int64 [rows of this process]: positions in the source, for one step of the run (counted over all epochs)."""
        first, end = self.rows(step)
        start = step % self.steps_per_epoch * self.batch_size
        return self._order(self.epoch(step))[start + first : start + end]

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """`indices(step)` in pieces of `micro_batch_size`; the last piece of a smaller batch may be shorter."""
        indices = self.indices(step)
        return [indices[at : at + self.micro_batch_size] for at in range(0, len(indices), self.micro_batch_size)]

    def _global_size(self, step: int) -> int:
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.num_images - start)

    def _order(self, epoch: int) -> np.ndarray:
        if self._permutation is None or self._permutation[0] != epoch:
            order = numpy_generator(self.seed, "order", epoch).permutation(self.num_images)
            self._permutation = (epoch, order.astype(np.int64, copy=False))
        return self._permutation[1]


def _check_sizes(num_images: int, batch_size: int, world_size: int, micro_batch_size: int | None) -> None:
    if num_images == 0:
        raise DataError("data.source: got 0 images, at least one batch is needed. Name a folder with images.")
    if num_images < batch_size:
        raise DataError(
            f"train.batch_size: got {batch_size}, but there are only {num_images} images to train on. "
            f"Write at most train.batch_size={num_images}, or add images."
        )
    if batch_size % world_size:
        raise ConfigError(
            f"train.batch_size: got {batch_size}, which {world_size} processes can't share equally. "
            f"Write a multiple of {world_size}."
        )
    share = batch_size // world_size
    if micro_batch_size is not None and (micro_batch_size < 1 or share % micro_batch_size):
        raise ConfigError(
            f"train.micro_batch_size: got {micro_batch_size}, expected a divisor of {share}, the images of one step on "
            f"one process (train.batch_size / processes)."
        )
