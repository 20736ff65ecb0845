"""How a command ends: exit codes, and who says what went wrong when there are several processes."""

import os
import sys

from halfseen.errors import HalfseenError

USERS_FAULT = 2
INTERRUPTED = 130


def is_first_process() -> bool:
    """Whether this is the only process, or number 0 of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def was_launched() -> bool:
    """Whether a `pretrain --devices` started this process: whatever concerns all of them, it has said itself."""
    return "HALFSEEN_LAUNCH_DIR" in os.environ


def complain(fault: HalfseenError | str) -> None:
    """A sentence on stderr; a process that `pretrain --devices` started hands it to its parent, which says it once."""
    if isinstance(fault, HalfseenError) and was_launched():
        from halfseen.engine.distributed import report_failure

        if report_failure(fault):
            return
    sys.stderr.write(f"{fault}\n")
