"""States of BABF from runs with any UNITS, read by Python: in eV, or in natural units."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import plumed
import pytest
from ase import units

from plumed_cv.common.errors import UserError
from plumed_cv.cv import random_model
from plumed_cv.freeenergy import (
    estimate_flux,
    estimate_profile,
    read_fes,
    read_state,
    split_into_blocks,
    write_fes,
    write_state,
)
from plumed_cv.setup.kernel import Plumed
from plumed_cv.workflow import analyse_states
from plumed_cv.workflow.analysis import read_sampled
from tests.plumed.babf import (
    KT,
    POSITION,
    Array,
    MakePlumed,
    recorded_series,
    run,
    sentence,
    step,
)

KJ_PER_MOL = units.kJ / units.mol
BARRIER = 3.0  # of the double well below, in units of kT
# One particle at kT = 1 in a double well, by the engine of `plumed pesmd`, in natural units.
PESMD = """nstep 200000
tstep 0.02
temperature 1.0
friction 1.0
dimension 1
ipos -1.0
periodic false
idum 7
plumed plumed.dat
"""
DOUBLE_WELL = f"""UNITS NATURAL
LOAD FILE={{plugin}}
p: DISTANCE ATOMS=1,2 COMPONENTS
v: CUSTOM ARG=p.x FUNC={BARRIER}*(x*x-1)^2 PERIODIC=NO
BIASVALUE ARG=v
b: BABF ...
  ARG=p.x TEMP=1 GRID_MIN=-1.8 GRID_MAX=1.8 GRID_BIN=72 RAMP=20000
  FES_FILE=fes.dat STATE_WFILE=state.dat STATE_WSTRIDE=10000 STORE_STATES
...
"""


def command_line(folder: Path, *words: str) -> str:
    """Run a command in a folder and return its output."""
    command = [sys.executable, "-m", "plumed_cv.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "energy_eV", "length_A", "written"),
    [
        ("", KJ_PER_MOL, 10.0, ("kj/mol", "nm")),
        ("UNITS LENGTH=A ENERGY=kcal/mol", units.kcal / units.mol, 1.0, ("kcal/mol", "A")),
        ("UNITS LENGTH=Bohr ENERGY=Ha", units.Ha, units.Bohr, ("Ha", "Bohr")),
        ("UNITS LENGTH=0.2 ENERGY=2.5", 2.5 * KJ_PER_MOL, 2.0, ("2.5", None)),
    ],
)
def test_a_state_is_the_same_in_all_units(
    make_plumed: MakePlumed,
    tmp_path: Path,
    line: str,
    energy_eV: float,
    length_A: float,
    written: tuple[str, str | None],
) -> None:
    def learn(name: str, units_line: str, length: float) -> None:
        ends = f"GRID_MIN=0 GRID_MAX={1 / length:.17g}"
        handle = make_plumed(
            1,
            f"{POSITION}\nb: BABF ARG=x.x TEMP=300 {ends} GRID_BIN=50 RAMP=100 "
            f"STATE_WFILE={tmp_path}/{name} FES_FILE={tmp_path}/{name}-fes",
            units=units_line,
            log=f"{name}.log",
        )
        run(handle, recorded_series())
        handle.finalize()

    learn("reference", "UNITS LENGTH=A ENERGY=eV", 1.0)
    learn("other", line, length_A)
    header = (tmp_path / "other").read_text()
    assert f"#! SET energy_unit {written[0]}\n" in header
    if written[1] is not None:
        assert f"#! SET length_unit {written[1]}\n" in header
    reference, other = read_state(tmp_path / "reference"), read_state(tmp_path / "other")
    assert other.energy_unit == reference.energy_unit == "eV"
    assert other.kT_eV == pytest.approx(KT, rel=1e-5)
    # The force is per length, and the offset is a length.
    scale = np.array([1.0, length_A, 1.0, 1.0 / length_A])[:, None]
    largest = np.abs(reference.sums).max(axis=1, keepdims=True)
    np.testing.assert_allclose(other.sums / scale / largest, reference.sums / largest, atol=1e-5)
    ours, theirs = (read_fes(tmp_path / f"{name}-fes").A_k for name in ("other", "reference"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "UNITS LENGTH=nm ENERGY=eV TIME=fs",
        "UNITS ENERGY=kcal/mol LENGTH=A",
        "UNITS LENGTH=Bohr MASS=2 TIME=atomic ENERGY=Ha",
        "UNITS LENGTH=0.2",
    ],
)
def test_gradients_are_the_same_in_all_units(
    make_plumed: MakePlumed, tmp_path: Path, line: str
) -> None:
    """The flux follows from the colvar beside a state, in the units of its plumed.dat."""
    model = random_model(np.random.default_rng(8), 4, 2, (3,))
    model.save(tmp_path / "cv.safetensors")
    positions = [
        model.reference_positions + 0.1 * np.sin(s + np.arange(12.0)).reshape(4, 3)
        for s in range(30)
    ]
    values = [model.value(x, np.zeros((3, 3)))[0] for x in positions]
    ends = f"GRID_MIN={min(values) - 0.1} GRID_MAX={max(values) + 0.1} GRID_BIN=20"
    columns = "ae.node-0,ae.gradnorm,ae.invmass"

    def learn(name: str, units_line: str) -> dict[str, list[Array]]:
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors",
            f"b: BABF ARG=ae.node-0 TEMP=300 {ends} RAMP=0 STATE_WFILE={folder}/babf.state",
            f"PRINT ARG={columns} FILE={folder}/colvar FMT=%.15g",
        ]
        (folder / "plumed.dat").write_text("\n".join([units_line, *lines]) + "\n")
        handle = make_plumed(4, "\n".join(lines), units=units_line, log=f"{name}.log")
        for number, x in enumerate(positions):
            step(handle, number, x)
        handle.finalize()
        return read_sampled([folder / "babf.state"])[0].series

    reference = learn("reference", "UNITS LENGTH=A ENERGY=eV TIME=fs")
    other = learn("other", line)
    assert list(other) == columns.split(",")
    for name in columns.split(","):
        np.testing.assert_allclose(other[name], reference[name], rtol=1e-6)
    wrong = tmp_path / "other" / "plumed.dat"
    wrong.write_text(wrong.read_text().replace(line, "UNITS LENGTH=um", 1))
    with pytest.raises(UserError, match=r"plumed\.dat: its length unit is 10000 angstrom, but"):
        read_sampled([tmp_path / "other" / "babf.state"])


def test_a_run_in_natural_units_has_results_in_natural_units(
    plumed_installation: Plumed, plugin: Path, tmp_path: Path
) -> None:
    """A run of PLUMED's engine `plumed pesmd` gives the barrier of its potential."""
    (tmp_path / "in").write_text(PESMD)
    (tmp_path / "plumed.dat").write_text(DOUBLE_WELL.format(plugin=plugin))
    command = [str(plumed_installation.executable), "--no-mpi", "pesmd"]
    with (tmp_path / "in").open() as lines:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=lines, capture_output=True, text=True, check=False
        )
    assert (tmp_path / "state.dat").exists(), done.stdout + done.stderr
    files = [tmp_path / f"state.{steps}.dat" for steps in range(50000, 200001, 10000)]
    state = read_state(files[-1])
    assert (state.energy_unit, state.length_unit, state.kT_eV) == ("natural", "natural", 1.0)
    assert "kT = 1.0000 natural units" in repr(state)

    analysis = analyse_states(files, reactant=-1.0, product=1.0)
    found = analysis.profile.barrier
    assert found.unit == analysis.delta_F.unit == "natural"
    # Five standard errors: one in a million.
    assert abs(found.value - BARRIER) < 5 * found.error < 0.5 * BARRIER
    assert np.isnan(analysis.rate.temperature_K)
    assert analysis.profile.plot().get_ylabel() == "free energy (natural units)"
    assert "A_error_natural" in analysis.to_dataframe()
    convergence = analysis.forward_backward_convergence(4)
    assert "natural units" in repr(convergence)
    assert "eV" not in repr(convergence)
    parts = split_into_blocks([read_state(file) for file in files])
    series = [np.ones(2)] * len(parts)
    with pytest.raises(UserError, match="with UNITS NATURAL: a flux barrier and a rate need"):
        estimate_flux(parts, series, series, series, (-1.0, 1.0))

    options = ["fes", *map(str, files), "--reactant=-1", "--product=1", "-o", "found.dat"]
    printed = command_line(tmp_path, *options, "--picture", "fes.png")
    assert f"barrier {found}" in printed
    assert str(found).endswith(" natural units")
    assert "eV" not in printed
    numbers = json.loads(command_line(tmp_path, *options, "--json"))
    assert numbers["barrier_natural"] == pytest.approx(found.value)
    # The files are in the unit of the run, which can read them.
    assert "#! SET energy_unit natural\n" in (tmp_path / "found.dat").read_text()
    back = read_fes(tmp_path / "found.dat")
    np.testing.assert_array_equal(back.A, analysis.profile.A)
    assert back.barrier == found
    written = read_fes(tmp_path / "fes.dat")
    assert written.energy_unit == "natural"
    whole = estimate_profile([read_state(tmp_path / "state.dat")], (-1.0, 1.0))
    np.testing.assert_allclose(written.A - written.A[40], whole.A - whole.A[40], atol=1e-9)


def test_a_state_is_continued_in_its_own_units_only(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    lines = f"{POSITION}\nb: BABF ARG=x.x TEMP=0.7 GRID_MIN=0 GRID_MAX=1 GRID_BIN=20 RAMP=0"
    natural = "UNITS NATURAL"
    first = make_plumed(1, f"{lines} STATE_WFILE={tmp_path}/first", units=natural)
    run(first, recorded_series(40))
    first.finalize()
    state = read_state(tmp_path / "first")
    assert state.kT_eV == 0.7
    write_state(tmp_path / "copied", state)
    write_fes(tmp_path / "profile", estimate_profile([state]))
    for keywords in (f"STATE_RFILE={tmp_path}/copied", f"PRIOR={tmp_path}/profile TAU=100"):
        again = make_plumed(1, f"{lines} {keywords}", units=natural, log="again.log")
        again.finalize()
    refused = lines.replace("TEMP=0.7", "TEMP=300")
    other = make_plumed(1, POSITION, log="other.log")
    with pytest.raises(plumed.PlumedError) as caught:
        other.cmd("readInputLine", f"{refused.splitlines()[1]} STATE_RFILE={tmp_path}/copied")
    assert "has energy_unit=natural but here it is eV" in sentence(caught.value)
    other.finalize()


def test_a_state_in_another_length_unit_is_refused(make_plumed: MakePlumed, tmp_path: Path) -> None:
    lines = f"{POSITION}\nb: BABF ARG=x.x TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=20 RAMP=0"
    first = make_plumed(
        1, f"{lines} STATE_WFILE={tmp_path}/state", units="UNITS LENGTH=Bohr ENERGY=eV"
    )
    run(first, recorded_series(40))
    first.finalize()
    handle = make_plumed(1, POSITION, log="other.log")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"{lines.splitlines()[1]} STATE_RFILE={tmp_path}/state")
    assert "has length_unit=Bohr but here it is A; give the same" in sentence(caught.value)
    # A state of the Python estimator does not say it.
    text = "".join(
        line
        for line in (tmp_path / "state").read_text().splitlines(keepends=True)
        if not line.startswith(("#! SET length_unit", "#! SET checksum"))
    )
    (tmp_path / "older").write_text(text)
    handle.finalize()
    older = make_plumed(1, f"{lines} STATE_RFILE={tmp_path}/older", log="older.log")
    older.finalize()
    other = make_plumed(1, f"{lines} STATE_WFILE={tmp_path}/in-angstrom", log="third.log")
    run(other, recorded_series(40))
    other.finalize()
    states = [read_state(tmp_path / name) for name in ("in-angstrom", "state")]
    with pytest.raises(UserError, match="only states of runs with the same UNITS"):
        states[0] + states[1]
