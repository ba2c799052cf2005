"""ASE calculators as engines: analytic forces, calculators of users, mistakes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from plumed_cv.common.errors import UserError
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.ase import AseEngine

SPRINGS = "ase.calculators.harmonic.SpringCalculator"


def copper() -> Atoms:
    atoms: Atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_a_metal() -> None:
    atoms, same = copper(), copper()
    same.calc = EMT()
    with AseEngine("ase.calculators.emt.EMT", atoms, arguments={"asap_cutoff": False}) as engine:
        atoms.calc = engine.calculator()
        assert atoms.get_potential_energy() == same.get_potential_energy()
        assert np.array_equal(atoms.get_forces(), same.get_forces())
        assert np.array_equal(atoms.get_stress(), same.get_stress())


def test_springs_keep_their_atoms_at_kt(tmp_path: Path) -> None:
    atoms: Atoms = bulk("Fe", cubic=True) * (2, 2, 2)
    k, temperature = 5.0, 300.0
    arguments = {"ideal_positions": atoms.positions.tolist(), "k": k}
    with AseEngine(SPRINGS, atoms, arguments=arguments) as engine:
        moved = atoms.positions + 0.1
        energy, forces, stress = engine.evaluate(moved, atoms.cell.array)
        assert energy == pytest.approx(0.5 * k * 0.01 * 3 * len(atoms))
        np.testing.assert_allclose(forces, -0.1 * k)
        assert np.isnan(stress).all()  # these springs have none
        dynamics = Dynamics(temperature, timestep_fs=4.0, friction_per_ps=20.0)
        result = engine.run(Segment(tmp_path, State.of(atoms), dynamics, 4000, 2))
    steps, temperatures, energies = np.loadtxt(tmp_path / "log.ase", unpack=True)
    assert steps.tolist() == [1000, 2000, 3000, 4000]
    # Four samples of 48 squares of normals each: 10 %, five of them. BAOAB samples the positions
    # of a harmonic oscillator at kT whatever the step.
    assert temperatures.mean() == pytest.approx(temperature, rel=0.5)
    assert energies.mean() == pytest.approx(1.5 * len(atoms) * units.kB * temperature, rel=0.5)
    assert result.end.velocities is not None


def test_a_calculator_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "my_potential.py").write_text(
        "from pathlib import Path\n"
        "from ase.calculators.harmonic import SpringCalculator\n"
        "def springs(file):\n"
        "    return SpringCalculator([[0, 0, 0], [0, 0, 0]], float(Path(file).read_text()))\n"
    )
    (tmp_path / "k.txt").write_text("2.5")
    atoms = Atoms("H2", [[0.1, 0, 0], [0, 0, 0.2]])
    arguments = {"file": "k.txt"}
    with AseEngine("my_potential.springs", atoms, arguments=arguments, directory=tmp_path) as own:
        np.testing.assert_allclose(own.evaluate(atoms.positions, np.zeros((3, 3)))[1][0, 0], -0.25)


def test_a_folder_of_the_packages_name_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plumed_cv").mkdir()
    (tmp_path / "plumed_cv/__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    atoms = Atoms("H2", [[0.1, 0, 0], [0, 0, 0.2]])
    with AseEngine(SPRINGS, atoms, arguments={"ideal_positions": [[0] * 3] * 2, "k": 1.0}) as own:
        assert own.evaluate(atoms.positions, np.zeros((3, 3)))[1][0, 0] == pytest.approx(-0.1)


def test_a_potential_that_gives_no_numbers(tmp_path: Path) -> None:
    atoms: Atoms = bulk("Fe", cubic=True) * (2, 2, 2)
    arguments = {"ideal_positions": atoms.positions.tolist(), "k": float("nan")}
    with AseEngine(SPRINGS, atoms, arguments=arguments) as engine:
        with pytest.raises(UserError, match="energy and forces are not finite"):
            engine.evaluate(atoms.positions, atoms.cell.array)
        with pytest.raises(UserError, match="flew apart"):
            engine.run(Segment(tmp_path, State.of(atoms), Dynamics(300.0), 10, 1))


def test_a_potential_whose_forces_depend_on_earlier_structures(tmp_path: Path) -> None:
    """The third forces are those of the second structure, as with an outdated neighbour list."""
    (tmp_path / "stale.py").write_text(
        "from ase.calculators.calculator import Calculator, all_changes\n"
        "class Stale(Calculator):\n"
        "    implemented_properties = ['energy', 'forces']\n"
        "    calls = 0\n"
        "    def calculate(self, atoms=None, properties=(), system_changes=all_changes):\n"
        "        super().calculate(atoms, properties, system_changes)\n"
        "        if self.calls != 2:\n"
        "            self.seen = self.atoms.positions.copy()\n"
        "        self.calls += 1\n"
        "        self.results = {'energy': 0.5 * (self.seen**2).sum(), 'forces': -self.seen}\n"
    )
    atoms = Atoms("H2", [[0.1, 0, 0], [0, 0, 0.2]])
    structures = atoms.positions * np.arange(1.0, 6.0)[:, None, None]
    with AseEngine("stale.Stale", atoms, directory=tmp_path) as engine:
        with pytest.raises(UserError, match=r"not those of their structures \(number 3 of 5"):
            engine.forces(structures, np.zeros((3, 3)))
        np.testing.assert_array_equal(engine.forces(structures, np.zeros((3, 3))), -structures)


TORCH_POTENTIAL = """
import torch
from ase.calculators.calculator import Calculator, all_changes

class Springs(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, places, k):
        super().__init__()
        self.places, self.k = torch.tensor(places), k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = torch.tensor(self.atoms.positions, requires_grad=True)
        energy = 0.5 * self.k * ((x - self.places) ** 2).sum()
        energy.backward()
        self.results = {"energy": float(energy), "forces": -x.grad.numpy()}
"""


def test_a_potential_and_a_variable_by_torch(tmp_path: Path, torch_plugin: Path) -> None:
    """Both in one process: springs by torch, and twice the distance by TORCH_CV."""

    class Twice(torch.nn.Module):
        def forward(self, arguments: torch.Tensor) -> torch.Tensor:
            return 2 * arguments

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Twice()).save(str(tmp_path / "model.pt"))
    (tmp_path / "torch_springs.py").write_text(TORCH_POTENTIAL)
    atoms = Atoms("Ar2", [[0.0, 0, 0], [3.0, 0, 0]])
    arguments = {"places": atoms.positions.tolist(), "k": 1.0}
    plumed = (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=1,2\n"
        "t: TORCH_CV MODEL=model.pt ARG=d\nr: RESTRAINT ARG=t.node-0 AT=0 KAPPA=0 SLOPE=0.5\n"
        "PRINT ARG=d,t.node-0 FILE=colvar FMT=%.15g\n"
    )
    still = Dynamics(1e-20, thermostat="brownian", friction_per_ps=10.0)
    with AseEngine(
        "torch_springs.Springs", atoms, arguments=arguments, directory=tmp_path
    ) as engine:
        end = engine.run(Segment(tmp_path, State.of(atoms), still, 2, 1, plumed)).end
    distance, twice = np.loadtxt(tmp_path / "colvar", unpack=True)[1:]
    np.testing.assert_allclose(twice, 2 * distance, rtol=1e-12)
    # Each atom is pushed by 2 x 0.5 eV/angstrom towards the other; the springs hardly pull yet.
    step = units.fs**2 / (atoms.get_masses()[0] * 0.01)
    assert distance[1] - distance[0] == pytest.approx(-2 * step, rel=1e-9)
    assert end.velocities is None


MISTAKES = {
    "ase.calculators.emt.EMX": "cannot be imported .*no attribute 'EMX'",
    "no_such_package.Thing": "cannot be imported .*No module named 'no_such_package'",
    "EMT": "give the dotted name of a calculator class",
    "math.sqrt": "is not an ASE calculator|cannot be made",
    "ase.calculators.emt.EMT": "gives no forces .*No EMT-potential for Ar",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str) -> None:
    atoms = bulk("Ar", cubic=True)
    with pytest.raises(UserError, match=MISTAKES[name]) as caught:
        AseEngine(name, atoms)
    assert "\n" not in str(caught.value)
