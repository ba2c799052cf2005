"""Tests of robustness: kills, full disks, clock changes, damaged files, many updates.

    python -m python.drills FOLDER DRILL [DRILL ...]    # do these in this folder, then print
    python -m python.drills                             # print from the committed data

The drills are `kills` (see --kills), `disk` (needs root), `company`, `readers`, `core`, `fuzz`
(needs clang), `updates`, `memory` and `snapshots`. Results are written to docs/robustness.json and
into the table of docs/robustness.md. The system is the vacancy of the packaged example, in a
crystal of 54 sites, sampled for seconds. Each drill takes minutes; 100 kills take 15 minutes.
"""

import argparse
import json
from pathlib import Path

from plumed_cv.common.files import write_text
from python.drills import fuzzers
from python.drills.directory import company, disk
from python.drills.endurance import memory, snapshots, updates
from python.drills.files import core, fuzz, readers
from python.drills.kills import kills
from python.drills.table import DATA, show, table

DRILLS = {
    "kills": kills,
    "disk": disk,
    "company": company,
    "readers": readers,
    "core": core,
    "fuzz": fuzz,
    "updates": updates,
    "memory": memory,
    "snapshots": snapshots,
}


def main() -> None:
    """Do the drills that are named, and print what all of them have found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=", ".join(DRILLS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="of kills, at most")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the C++ readers")
    parser.add_argument("--fuzz_cases", type=int, default=1_000_000, help="of each C++ reader")
    parser.add_argument("--fuzz_readers", nargs="+", default=fuzzers.READERS, metavar="READER")
    parser.add_argument("--python_cases", type=int, default=10_000, help="of those in Python")
    parser.add_argument("--updates", type=int, default=100_000_000, help="of the sums")
    parser.add_argument("--steps", type=int, default=10_000_000, help="in which memory is watched")
    parser.add_argument("--structures", type=int, default=1_000_000, help="to train on")
    parser.add_argument("--step_kB", type=int, default=100, help="by which the full disk grows")
    arguments = parser.parse_args()
    for name in arguments.drills:
        if name not in DRILLS:
            parser.error(f"there is no drill {name}; choose of {', '.join(DRILLS)}")
    found = json.loads(DATA.read_text()) if DATA.exists() else {}
    if arguments.folder is not None:
        folder = arguments.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.drills:
            result = DRILLS[name](folder, arguments)
            found = json.loads(DATA.read_text()) | {name: result}  # others may have written since
            write_text(DATA, json.dumps(found, indent=1) + "\n")
            show(found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
