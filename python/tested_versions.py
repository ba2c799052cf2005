"""Write the installed versions into plumed_cv/tested_versions.json after all tests have passed.

    python python/tested_versions.py

`plumed-cv doctor` shows them; tests/test_install.py fails if it runs with other versions.
"""

import json
from pathlib import Path

from plumed_cv.common.files import write_text
from plumed_cv.doctor import examine, tested_versions

FILE = Path(__file__).resolve().parent.parent / "plumed_cv" / "tested_versions.json"


def main() -> None:
    """Write the versions found here; keep those of packages that are missing."""
    found = {finding.name: finding.version for finding in examine() if finding.version}
    known = tested_versions() if FILE.exists() else {}
    write_text(FILE, json.dumps(known | found, indent=2) + "\n")
    print(FILE.read_text(), end="")


if __name__ == "__main__":
    main()
