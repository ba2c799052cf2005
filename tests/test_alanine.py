"""The table of docs/molecules.md is the committed data's."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "python.alanine"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in (ROOT / "docs" / "molecules.md").read_text(encoding="utf-8")
