"""The public names of `plumed_cv`: fast import, results as objects, runs from ASE's Atoms."""

import json
import logging
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from matplotlib.figure import Figure

import plumed_cv as pcv
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Callback, Log
from plumed_cv.input_file import Ase, Lammps
from plumed_cv.sampling import open_engine
from plumed_cv.workflow import analyse_samples, provenance
from tests import vacancy
from tests.test_results import sampled


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys, plumed_cv; print(sorted(plumed_cv.__all__) == plumed_cv.__all__, "
        "[name for name in sys.modules if name.split('.')[0] in "
        "('ase', 'lammps', 'matplotlib', 'mdtraj', 'numpy', 'sklearn', 'torch')]); "
        "plumed_cv.AutoencoderCV, plumed_cv.read_profile; print('torch' in sys.modules, "
        "'lammps' in sys.modules, 'mdtraj' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True []", "False False False"]


def test_every_name_is_there_and_documented() -> None:
    assert pcv.__doc__ is not None
    for name in set(pcv.__all__) - {"__version__"}:
        assert getattr(pcv, name).__doc__
        assert f"`{name}`" in pcv.__doc__, name
    assert dir(pcv) == sorted(pcv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        _ = pcv.paint


def analysis() -> pcv.Analysis:
    """Three wells of known free energy in 20 blocks."""
    _, found = sampled(0.2)
    profile, numbers = analyse_samples(found)
    return pcv.Analysis(found, (20,), (0.0, 1.0), profile, numbers)


def test_forward_and_backward_convergence() -> None:
    found = analysis()
    converged = found.forward_backward_convergence()
    np.testing.assert_allclose(converged.fraction, np.arange(1, 11) / 10)
    # All samples are the same samples, forward and backward.
    whole = found.flux_barrier
    for last in (converged.forward_eV[-1], converged.backward_eV[-1]):
        assert last == pytest.approx(whole.value, abs=1e-9)
    # Blocks are independent: half of them differ from the other half by their errors, and these
    # are the root of two larger than that of all. Four standard errors: 6e-5.
    half = (converged.fraction == 0.5).argmax()
    errors = [converged.forward_error_eV[half], converged.backward_error_eV[half]]
    apart = converged.forward_eV[half] - converged.backward_eV[half]
    assert abs(apart) < 4 * math.hypot(*errors)
    assert 0.4 < whole.error / np.mean(errors) < 1.3
    table = converged.to_dataframe()
    assert list(table.columns)[:3] == ["fraction", "forward_eV", "forward_error_eV"]
    axes = converged.plot(Figure().subplots())
    assert axes.get_ylabel() == "flux barrier (eV)"
    assert repr(converged).startswith("Convergence(flux barrier: first 50 % 0.")
    with pytest.raises(UserError, match="two blocks of a run"):
        found.forward_backward_convergence(1)


def test_convergence_of_the_profile_alone() -> None:
    """For states without COLVAR, the convergence is that of the height of the profile."""
    found = analysis()
    bare = pcv.Analysis(
        found.found._replace(series={}), (20,), (0.0, 1.0), found.profile, found.numbers
    )
    converged = bare.forward_backward_convergence(4)
    assert converged.quantity == "barrier"
    assert converged.forward_eV[-1] == pytest.approx(found.barrier.value, abs=1e-9)


def test_objects_plot_and_tabulate() -> None:
    found = analysis()
    table = found.to_dataframe()
    np.testing.assert_array_equal(table["A_eV"], found.profile.A)
    assert table.index.name == found.profile.argument
    axes = found.plot(Figure().subplots(), color="k")
    assert axes.get_ylabel() == "free energy (eV)"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.profile.A)
    assert found.rate.tst_rate_per_s == found.numbers["tst_rate_per_s"]
    assert repr(found).startswith("Analysis(8,000 steps: flux barrier ")


def test_without_pandas_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"table of results needs .* pandas.*plumed_cv\[notebook\]"):
        pcv.Rate(300.0).to_dataframe()


def test_rates() -> None:
    of_states = pcv.Rate(700.0, tst_rate_per_s=1.4e9, tst_rate_error_per_s=0.2e9)
    factor = math.exp(0.2 / 1.4)
    assert repr(of_states) == (
        f"Rate(1.4 × 10⁹ 1/s within a factor of {factor:.2g} at 700 K, transition state theory)"
    )
    numbers = {"temperature_K": 700.0, "tst_rate_per_s": 1.4e9, "transmission": 0.5}
    numbers["transmission_error"] = 0.04
    known = pcv.Rate.of(numbers | {"rate_per_s": 7e8, "rate_error_factor": 1.25, "else": 1})
    assert (
        repr(known)
        == "Rate(7.0 × 10⁸ 1/s within a factor of 1.2 at 700 K, transmission 0.50 ± 0.04)"
    )
    assert (of_states.best_per_s, known.best_per_s) == (1.4e9, 7e8)
    assert repr(pcv.Rate(700.0)) == "Rate(unknown at 700 K)"
    axes = Figure().subplots()
    for rate in (of_states, known, pcv.Rate(700.0)):
        rate.plot(axes)
    assert len(axes.containers) == 2
    assert axes.get_yscale() == "log"
    (row,) = known.to_dataframe().to_dict("records")
    assert row["rate_per_s"] == 7e8
    assert row["tst_rate_error_per_s"] is None


def test_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no result\.json"):
        pcv.read_result(tmp_path)


@pytest.mark.parametrize(
    ("calculator", "arguments"),
    [
        (EMT, {}),
        ("ase.calculators.emt.EMT", {}),
        (partial(EMT, asap_cutoff=True), {"asap_cutoff": True}),
        (EMT(asap_cutoff=True), {"asap_cutoff": True}),
    ],
)
def test_calculators_are_made_again_in_another_process(
    calculator: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    initial, final = ends()
    config = pcv.make_config(
        initial, final, temperature_K=500, directory=tmp_path / "run", calculator=calculator
    )
    assert isinstance(config.engine, Ase)
    assert config.engine.calculator == "ase.calculators.emt.EMT"
    assert {**config.engine.arguments} == arguments
    expected = initial.copy()
    expected.calc = EMT(**arguments)
    with open_engine(config, initial) as engine:
        forces = engine.forces(initial.positions[None], initial.cell.array)[0]
    np.testing.assert_array_equal(forces, expected.get_forces())


def test_a_committee_of_calculators(tmp_path: Path) -> None:
    initial, final = ends()
    members = [EMT(asap_cutoff=True), {"arguments": {"asap_cutoff": False}}]
    config = pcv.make_config(
        initial,
        final,
        temperature_K=500,
        directory=tmp_path / "run",
        calculator=EMT,
        engine={"committee": members},
    )
    found = config.engine.members
    assert all(isinstance(member, Ase) for member in found)
    arguments = [member.arguments for member in found if isinstance(member, Ase)]
    assert arguments == [{"asap_cutoff": True}, {"asap_cutoff": False}]


def ends() -> tuple[Atoms, Atoms]:
    """A vacancy's hop in 31 atoms of copper."""
    initial: Atoms = bulk("Cu", cubic=True).repeat(2)
    initial.rattle(0.01, seed=3)
    hole = initial.positions[0].copy()
    del initial[0]
    final = initial.copy()
    final.positions[0] = hole
    return initial, final


class Own(Calculator):
    """A calculator that cannot be made from its parameters."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, depth: float) -> None:
        Calculator.__init__(self)
        self.depth = depth


def test_calculators_that_cannot_be_made_again(tmp_path: Path) -> None:
    initial, final = ends()

    def refused(calculator: Any, match: str, **more: Any) -> None:
        with pytest.raises(UserError, match=match):
            pcv.make_config(
                initial, final, temperature_K=500, directory=tmp_path, calculator=calculator, **more
            )

    refused(lambda: EMT(), "is defined in the notebook or script itself")
    refused(Own(0.1), r"Own: cannot be made again .* functools\.partial\(Own, \.\.\.\)")
    refused(partial(Own, 0.1), "keywords, not positional")
    refused(3.0, "is not an ASE calculator")
    refused(partial(EMT, cut=np.zeros(3)), r"arguments \['cut'\] must be numbers")
    refused(None, "Give one of calculator")
    refused(EMT, "Give one of calculator", potential=["pair_style none"])
    assert not list(tmp_path.iterdir())


def test_a_configuration_keeps_its_structures(tmp_path: Path) -> None:
    """The arguments are recorded: a run continues with equal ones and refuses others."""
    initial, final = ends()
    initial.info["note"] = "not kept"
    initial.set_velocities(np.ones((31, 3)))

    def made(**more: Any) -> Any:
        return pcv.make_config(
            initial,
            final,
            temperature_K=500,
            directory=tmp_path,
            **{"potential": ["pair_style none"], "sampling": {"steps": 5000}, **more},
        )

    config = made()
    assert isinstance(config.engine, Lammps)
    assert config.sampling.steps == 5000
    provenance.check_same_input(tmp_path, config)
    provenance.check_same_input(tmp_path, made())
    words = "initial.xyz: contains another structure"
    moved = initial.copy()
    moved.positions[3] += 0.1
    with pytest.raises(UserError, match=words):
        pcv.make_config(
            moved, final, temperature_K=500, directory=tmp_path, potential=["pair_style none"]
        )
    with pytest.raises(UserError, match=r"there is no key sampling\.step;"):
        made(sampling={"step": 1})
    with pytest.raises(UserError, match=r"there is no key smpling;"):
        made(smpling={"steps": 1})


def test_a_path_by_a_calculator() -> None:
    """The vacancy in copper has the same energy at both ends by symmetry, and a barrier."""
    initial, final = ends()
    path = pcv.find_path(initial, final, calculator=EMT(), n_images=5, fmax_eV_A=0.05)
    assert path.energies[-1] == pytest.approx(0.0, abs=1e-3)
    assert 0.5 < path.barrier < 1.0
    axes = path.plot(Figure().subplots())
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), path.energies)


def test_progress_goes_to_a_function_and_results_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[tuple[str, float, float | None, str]] = []
    with caplog.at_level(logging.INFO, logger="plumed_cv"):
        reporter = Callback(lambda *words: calls.append(words))
        with reporter.task("training", 10) as update:
            update(4, "error 0.1 A")
        for each in (reporter, Log()):
            each.say("done")
    assert calls == [("training", 0.0, 10, ""), ("training", 4, 10, "error 0.1 A")]
    assert [record.message for record in caplog.records] == ["training", "done", "done"]
    assert {record.name for record in caplog.records} == {"plumed_cv"}


@pytest.mark.slow
def test_a_run_from_structures_goes_on(plugin: Path, tmp_path: Path) -> None:
    initial, final = vacancy.end_states()
    told: set[str] = set()

    def run(maximum: int) -> pcv.Result:
        return pcv.run(
            initial,
            final,
            temperature_K=300.0,
            directory=tmp_path / "run",
            potential=["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"],
            progress=lambda name, done, total, note: told.add(name),
            path={"images": 7, "fmax_eV_A": 0.02, "structures": 500},
            cv={"components": 5},
            sampling={"steps": vacancy.STEPS, "segments": 8, "timestep_fs": 2.0},
            iteration={"minimum": 1, "maximum": maximum, "seed": 3},
        )

    result = run(1)
    assert "iteration 1: bABF sampling" in told
    assert result.data == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result.flux_barrier.value == result.data["flux_barrier_eV"]
    assert result.profile.barrier.value == pytest.approx(result.barrier.value)
    assert result.cv.n_atoms == result.data["cv_atoms"] < 53
    assert [check.name for check in result.checks if check.passed is False]
    assert not result.converged
    assert repr(result).startswith(f"Result({tmp_path / 'run'}: flux barrier 0.")
    axes = result.plot(Figure().subplots())
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:2] == ["300 K", "0 K, minimum energy path"]
    again = run(2)
    assert list(again.to_dataframe().index) == [1, 2]
    converged = again.forward_backward_convergence(4)
    of_itself = again.data["estimators"]  # without the snapshots of earlier iterations
    own = of_itself[again.data["estimator"].removesuffix(" in all iterations")]
    assert converged.forward_eV[-1] == pytest.approx(own["flux_barrier_eV"])
