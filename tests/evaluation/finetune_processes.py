"""A program of the tests: `python -m evaluation.finetune_processes FOLDER` fine-tunes; no test image can be read.

That is noticed on process 0 alone, which has the scores of all.
"""

import sys
from pathlib import Path

from evaluation.test_finetune import images, prepare
from halfseen.data.sources import open_source
from halfseen.engine.distributed import report_failure
from halfseen.errors import DataError
from halfseen.evaluation.finetuning.protocol import finetune
from halfseen.evaluation.statements import Split


def main() -> None:
    folder = Path(sys.argv[1])
    subject, loaded, settings = prepare(folder / "run", "baselines=false", "train.max_steps=2")
    try:
        test = Split(open_source(str(folder / "broken")), "test")
        finetune(subject, Split(images(), "train"), test, loaded, settings)
    except DataError as error:
        report_failure(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
