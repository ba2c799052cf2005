"""Error messages of all engines: mistakes in the input, the atoms and the dynamics."""

from pathlib import Path

import numpy as np
import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.cv import linear
from plumed_cv.engines import Dynamics, Engine, Segment, State
from plumed_cv.engines.plumed_input import NESTED, plumed_sentence
from tests.engines.kits import PLUMED_UNITS, crystal

BAD_PLUMED = {
    "d: DISTNCE ATOMS=1,2\n": 'Action "DISTNCE" is not known',
    "d: DISTANCE ATOMS=1,999\n": "out of range",
    "METAD ARG=d PACE=1 HEIGHT=1 SIGMA=1\n": "cannot find action named d",
    "LOAD FILE=nothing.so\n": "Could not load library nothing.so",
}


@pytest.mark.parametrize("line", BAD_PLUMED)
def test_bad_plumed_input(tmp_path: Path, engine: Engine, line: str) -> None:
    with pytest.raises(UserError, match=BAD_PLUMED[line]) as caught:
        engine.run(Segment(tmp_path, State.of(crystal()), Dynamics(50.0), 1, 1, line))
    assert "\n" not in str(caught.value)
    assert "plumed.dat" in str(caught.value)


def test_an_error_in_mid_run_says_its_cause(tmp_path: Path, plugin: Path, engine: Engine) -> None:
    """PLUMED nests it in one that says "An error happened while calculating ae" alone."""
    ends = crystal(), crystal(1)
    cell = 2.0 * ends[0].cell.array
    large = linear(ends[0].symbols, cell, *(atoms.positions for atoms in ends))
    large.save(tmp_path / "cv.safetensors")
    plumed = PLUMED_UNITS + (
        f"LOAD FILE={plugin}\nae: AUTOENCODER MODEL=cv.safetensors\n"
        "RESTRAINT ARG=ae.node-0 AT=0 KAPPA=1\n"
    )
    with pytest.raises(UserError) as caught:
        engine.run(Segment(tmp_path, State.of(ends[0]), Dynamics(50.0), 1, 1, plumed))
    assert str(caught.value) == (
        f"{tmp_path / 'plumed.dat'}: PLUMED: ERROR in input to action AUTOENCODER with label ae : "
        "cv.safetensors: the cell of the engine differs from the model's by more than 25 %, is "
        "rotated or is flipped; use the cell, the orientation, the lattice vectors and the units "
        "of the training, and do not let the engine flip the cell (in LAMMPS: flip no)."
    )


def test_a_cause_that_names_no_action() -> None:
    said = f"\n(tools/Tools.cpp:9) f()\nout of range\n\n{NESTED}\n(core/X.cpp:1) g()\nAt work on b"
    assert plumed_sentence(said) == "PLUMED: out of range (At work on b)"


def test_atoms_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(UserError, match="107 atoms"):
        engine.check(crystal()[:107])
    other = crystal()
    other.symbols[4] = "Ne"
    with pytest.raises(UserError, match="atom 5 is Ne"):
        engine.check(other)
    surface = crystal()
    surface.pbc = [True, True, False]
    with pytest.raises(UserError, match="periodic boundaries"):
        engine.check(surface)
    turned = crystal()
    turned.rotate(30, "z", rotate_cell=True)
    with pytest.raises(UserError, match="first vector along x"):
        engine.check(turned)


def test_positions_that_are_no_numbers(engine: Engine) -> None:
    atoms = crystal()
    atoms.positions[3, 1] = np.nan
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not all finite numbers"):
        atoms.get_forces()


def test_two_atoms_at_one_place(engine: Engine) -> None:
    atoms = crystal()
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = engine.calculator()
    # GROMACS has words of its own for it.
    cause = "are not finite; check that no two|potential energy is .* extremely high"
    with pytest.raises(UserError, match=cause):
        atoms.get_forces()
    # The engine works on.
    assert np.isfinite(engine.evaluate(crystal().positions, crystal().cell.array)[0])


@pytest.mark.parametrize("plumed", [None, PLUMED_UNITS + "d: DISTANCE ATOMS=1,2\n"])
def test_exploding_dynamics(tmp_path: Path, engine: Engine, plumed: str | None) -> None:
    hasty = Dynamics(3000.0, timestep_fs=1000.0)
    with pytest.raises(UserError, match="flew apart") as caught:
        engine.run(Segment(tmp_path, State.of(crystal()), hasty, 1000, 1, plumed))
    assert "\n" not in str(caught.value)
    # The engine works on.
    assert np.isfinite(engine.evaluate(crystal().positions, crystal().cell.array)[0])


def test_forces_that_are_no_numbers(tmp_path: Path, engine: Engine) -> None:
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,2\nc: CUSTOM ARG=d FUNC=sqrt(x-100) PERIODIC=NO\n"
        "RESTRAINT ARG=c AT=0 KAPPA=1\n"
    )
    segment = Segment(
        tmp_path, State.of(crystal()), Dynamics(60.0, timestep_fs=2.0), 200, 1, plumed
    )
    with pytest.raises(UserError, match="at the forces of the bias"):
        engine.run(segment)


def test_states_and_segments_refuse_nonsense(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(UserError, match="temperature_K = -1"):
        Dynamics(-1.0)
    with pytest.raises(UserError, match="'langevin', 'brownian' or 'none'"):
        Dynamics(300.0, thermostat="nose")  # type: ignore[arg-type]
    start = State.of(crystal())
    with pytest.raises(UserError, match="n_steps = 0"):
        Segment(tmp_path, start, Dynamics(300.0), 0, 1)
    with pytest.raises(UserError, match="no such folder"):
        engine.run(Segment(tmp_path / "none", start, Dynamics(300.0), 1, 1))
    with pytest.raises(UserError, match="is not a state of a run"):
        State.load(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"shape \(3, 3\)"):
        engine.run(Segment(tmp_path, State(np.eye(3), start.cell), Dynamics(300.0), 1, 1))
    turned = State(start.positions, np.roll(start.cell, 1, axis=1))
    with pytest.raises(UserError, match=r"does not fit the engine; .* first vector") as said:
        engine.run(Segment(tmp_path, turned, Dynamics(300.0), 1, 1))
    assert "\n" not in str(said.value)
