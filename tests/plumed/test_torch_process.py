"""TORCH_CV in the process of an engine: with and without Python's torch, and its threads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plumed_cv.setup.kernel import Plumed
from tests.plumed.torch_models import network, save

# A step of two PLUMEDs, one after the other, in a process of its own; prints the forces.
PROCESS = """
import sys
from pathlib import Path
order, kernel, plugin, model = sys.argv[1:]
if order == "torch first":
    import torch
    torch.set_num_threads(3)
    threads = torch.__config__.parallel_info()
import numpy as np, plumed

def run():
    handle = plumed.Plumed(kernel=kernel)
    handle.cmd("setNatoms", 4)
    handle.cmd("setLogFile", "/dev/null")
    handle.cmd("init")
    for line in (f"LOAD FILE={plugin}", "d: DISTANCE ATOMS=1,2", "e: DISTANCE ATOMS=3,4",
                 f"cv: TORCH_CV MODEL={model} ARG=d,e", "RESTRAINT ARG=cv.node-0 AT=1 KAPPA=9"):
        handle.cmd("readInputLine", line)
    arrays = {"Box": np.zeros((3, 3)), "Positions": np.arange(12.0).reshape(4, 3) ** 0.5,
              "Masses": np.ones(4), "Forces": np.zeros((4, 3)), "Virial": np.zeros((3, 3))}
    handle.cmd("setStep", 0)
    for name, array in arrays.items():
        handle.cmd("set" + name, array)
    handle.cmd("calc")
    handle.finalize()
    return arrays["Forces"]

first = run()
assert ("torch" in sys.modules) == (order == "torch first")
if order == "torch last":
    import torch
    x = torch.ones(3, requires_grad=True)
    (x ** 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
assert (run() == first).all()
if order == "torch first":
    assert torch.__config__.parallel_info() == threads
print(first.tolist())
"""


def test_processes_with_and_without_pythons_torch(
    plumed_installation: Plumed, torch_plugin: Path, tmp_path: Path
) -> None:
    """Autograd works whichever thread holds the interpreter lock, also in a second PLUMED."""
    save(network(2, 1), tmp_path / "model.pt")
    arguments = [str(plumed_installation.kernel), str(torch_plugin), str(tmp_path / "model.pt")]
    shown = []
    for order in ("no torch", "torch first", "torch last"):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, order, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (order, done.stderr)
        shown.append(done.stdout)
    assert shown[0] == shown[1] == shown[2]
    assert "nan" not in shown[0]


# Evaluates a large model; prints how many threads that started, and the number of each OpenMP.
THREADS = """
import ctypes, os, sys
import numpy as np, plumed
kernel, plugin, model, threads = sys.argv[1:]
handle = plumed.Plumed(kernel=kernel)
handle.cmd("setNatoms", 1)
handle.cmd("setLogFile", "/dev/null")
handle.cmd("init")
handle.cmd("readInputLine", f"LOAD FILE={plugin}")
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}
runtimes = [ctypes.CDLL(library) for library in libraries]
for runtime in runtimes:
    runtime.omp_set_num_threads(5)
before = len(os.listdir("/proc/self/task"))
handle.cmd("readInputLine", f"cv: TORCH_CV MODEL={model} ATOMS=1 THREADS={threads}")
print(len(os.listdir("/proc/self/task")) - before, *{r.omp_get_max_threads() for r in runtimes})
"""


class Large(nn.Module):
    """A model with so many numbers that torch would use all its threads."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.tanh(positions.sum() * torch.ones(1_000_000, dtype=positions.dtype)).mean()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows")
def test_threads(plumed_installation: Plumed, torch_plugin: Path, tmp_path: Path) -> None:
    """The default is one thread, and the engine's number of threads does not change."""
    save(Large(), tmp_path / "model.pt")
    for threads in (1, 3):
        done = subprocess.run(
            [
                *(sys.executable, "-c", THREADS, str(plumed_installation.kernel)),
                *(str(torch_plugin), str(tmp_path / "model.pt"), str(threads)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # The model is evaluated once when it is read.
        started, *numbers = map(int, done.stdout.split())
        assert numbers == [5]
        assert started == 0 if threads == 1 else started >= 2


def test_the_other_plugin_needs_no_torch(plugin: Path, plumed_installation: Plumed) -> None:
    if not Path("/proc/self/maps").is_file():
        pytest.skip("looks at the loaded libraries as Linux shows them")
    code = (
        "import sys, plumed; h = plumed.Plumed(kernel=sys.argv[1]); h.cmd('setNatoms', 1); "
        "h.cmd('setLogFile', '/dev/null'); h.cmd('init'); "
        "h.cmd('readInputLine', 'LOAD FILE=' + sys.argv[2]); print(open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(plumed_installation.kernel), str(plugin)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plugin.name in done.stdout
    assert not re.search(r"libtorch|libc10", done.stdout)
