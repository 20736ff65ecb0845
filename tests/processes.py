"""Programs of the tests in two processes, started as the command line starts them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
LAUNCH = """
import sys
from halfseen.engine.distributed import launch
result = launch(2, sys.argv[2:], module=sys.argv[1])
if result.message:
    print(result.message, file=sys.stderr)
sys.exit(result.exit_code)
"""


def start_two(module: str, *words: str) -> "subprocess.Popen[str]":
    """`python -m MODULE WORDS` in two processes, going on in the background."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, module, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_two(module: str, *words: str, exit_code: int = 0) -> str:
    """The same to its end; gives what it said on stderr."""
    with start_two(module, *words) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == exit_code, said
    return said
