"""What a run notes of its images: data.json, read again when the run goes on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.types import Batch, SkippedFile

DATA = "data.json"


@dataclass
class Diary:
    """What is known of a run's data: written to data.json, and gone through again on resume."""

    folder: Path
    source: Source
    skipped: dict[int, SkippedFile] = field(default_factory=dict)

    def note(self, skipped: Sequence[SkippedFile]) -> None:
        """Remember files that could not be used."""
        for each in skipped:
            self.skipped.setdefault(each.index, each)

    def note_batches(self, batches: list[Batch]) -> None:
        """Remember the skipped files of a step."""
        for batch in batches:
            self.note(batch.skipped)

    def read(self) -> None:
        """Take up what an interrupted run has written.

        Raises:
            DataError: its images were others, so the order of all that is to come would be another one.
        """
        if not (self.folder / DATA).is_file():
            return
        before = json.loads((self.folder / DATA).read_text(encoding="utf-8"))
        if before["fingerprint"] != self.source.fingerprint():
            raise DataError(
                f"data.source: the images of '{self.source.name}' are not those that the run in '{self.folder}' began "
                f"with ({before['images']:,} then, {len(self.source):,} now). A run goes on with the same files and "
                "the same skip list: bring them back, or start a new run."
            )
        self.note([SkippedFile(**each) for each in before["skipped"]])

    def write(self) -> None:
        """Write data.json."""
        content = {
            "source": self.source.name,
            "images": len(self.source),
            "labelled": int((self.source.labels >= 0).sum()),
            "classes": list(self.source.class_names),
            "fingerprint": self.source.fingerprint(),
            "drawn_from": [each.fingerprint() for each in self.source.drawn_from()],
            "left_out": [each._asdict() for each in self.source.left_out],
            "skipped": [each._asdict() for _, each in sorted(self.skipped.items())],
        }
        path = self.folder / DATA
        beside = path.with_name(path.name + ".part")
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(path)


def read_drawn_from(folder: Path) -> tuple[str, ...]:
    """Fingerprints of the sets that the images of the run in `folder` were drawn from, none where none is on record."""
    try:
        content = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(content.get("drawn_from", ()))
