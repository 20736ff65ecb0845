"""One image file to uint8 RGB, whatever its kind."""


class BadImage(Exception):
    """An image that can't be used; `reason` is a short sentence for lists of skipped files."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
