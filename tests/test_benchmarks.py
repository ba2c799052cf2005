"""The benchmarks that measure time: each runs in a process of its own, shortened, and prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plumed_cv.setup.kernel import Plumed
from tests.conftest import needed

REPOSITORY = Path(__file__).parents[1]
# For each script: what makes it short, and the call.
SHORT = {
    "batches": "it.STEPS = 2; it.main()",
    "babf_2d": "it.BINS, it.STEPS, it.REPETITIONS = (25,), 2000, 1; it.main()",
    "campaign": "it.main()",
    "engines": "it.LENGTHS = {'lammps': (200, 100), 'ase': (20, 10)}; it.main()",
    "searches": "it.main()",
    "size": "sys.argv = ['size', '--atoms', '127', '--steps', '400']; it.main()",
    "step_cost": (
        "it.CELLS, it.COMPONENTS = {127: (4, 4, 4)}, (4,); "
        "it.BINS, it.COUPLED = (100,), {127: 200}; print(it.measure(True))"
    ),
    "torch_cv": "it.SIZES = {127: 4}; it.main()",
    "training": "print(it.measure('denoising', 500, 20, True))",
    "walkers": "it.NUMBERS = (2, 10); it.main()",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_runs(name: str, plumed_installation: Plumed, plugin: Path) -> None:
    if name == "batches":
        needed("chgnet", "chgnet")
    code = f"import sys, python.benchmarks.{name} as it; {SHORT[name]}"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick"][: 3 if name == "babf_2d" else 4],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d\.\d|\d\d", done.stdout)) > 3
    assert "nan" not in done.stdout


def test_every_benchmark_of_time_is_here() -> None:
    """The others print tables of runs; test_pages.py and test_efficiency.py run them."""
    timed = {
        file.stem
        for file in (REPOSITORY / "python" / "benchmarks").glob("*.py")
        if "perf_counter" in (text := file.read_text(encoding="utf-8")) or "--quick" in text
    }
    assert timed <= {*SHORT, "efficiency_methods"}
