"""The exceptions users may see.

Each message says what was given, what is allowed and how to mend it, in one sentence or two. The command line prints
a `HalfseenError` as one line on stderr and exits with 2; any other exception is our own fault and keeps its traceback.
"""


class HalfseenError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(HalfseenError, ValueError):
    """A key, value or combination of settings is not allowed."""


class DataError(HalfseenError, ValueError):
    """The data set is missing, empty, unreadable or of another form than asked for."""


class CheckpointError(HalfseenError, RuntimeError):
    """A checkpoint can't be written, read or continued."""


class WeightsError(HalfseenError, RuntimeError):
    """Foreign or exported weights don't fit the model, or can't be read safely."""


class ShapeError(HalfseenError, ValueError):
    """Image, patch, grid, mask or tensor sizes that do not go together."""


class TrainingError(HalfseenError, RuntimeError):
    """A run that can't go on, for instance after a non-finite loss."""


class MissingExtraError(HalfseenError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""
