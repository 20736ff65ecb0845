"""`python -m benchmarks.memory CASE ours|peer PRECISION BATCH_SIZE PHOTOGRAPHS`: peak memory of one contestant alone.

Prints one line of JSON: `peak`, and `before` a model was built (imports), both resident bytes.
"""

import json
import sys
from pathlib import Path

from benchmarks.cases import chosen
from benchmarks.clock import resident_now, resident_peak

STEPS = 3


def main() -> None:
    """Three steps, then the process's peak."""
    name, who, precision, batch_size, folder = sys.argv[1:]
    case = chosen(name, int(batch_size))
    if who == "ours":
        from benchmarks.ours import build_ours, photographs

        source = photographs(Path(folder))
        before = resident_now()
        contestant = build_ours(case, precision, source)
    else:
        from benchmarks.peers import build_peer, import_peer

        import_peer(case)
        before = resident_now()
        contestant = build_peer(case, precision)
    for _ in range(STEPS):
        contestant.step()
    print(json.dumps({"peak": resident_peak(), "before": before}))


if __name__ == "__main__":
    main()
