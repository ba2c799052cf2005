"""The iterative procedure as a user runs it: command line, resumption after SIGKILL, bad input.

A short run of the iron vacancy in a 54-atom crystal with real LAMMPS and PLUMED.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from plumed_cv import freeenergy, input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.paths.path import load_path
from plumed_cv.sampling import task
from plumed_cv.structures import read_structure
from plumed_cv.structures.trajectory import read_displacements
from plumed_cv.workflow.directory import claimed
from tests.vacancy import INPUT, STEPS, called


def test_answer_has_what_is_promised(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    for name in ("barrier", "delta_F", "flux_barrier"):
        assert {f"{name}_eV", f"{name}_error_eV"} <= set(result)
        assert {f"{name}_eV", f"{name}_error_eV"} <= set(result["iterations"][0])
    # So short a run has no accuracy to test; its error bar must not claim any, if there is one.
    assert result["barrier_eV"] > 0
    assert result["barrier_error_eV"] is None or result["barrier_error_eV"] > 0.01
    assert result["converged"] is False
    # So few structures do not always teach the same variable twice.
    reasons = ("another iteration cannot correct the failed checks", "iteration limit")
    assert result["stopped_by"].startswith(reasons)
    assert "Raise sampling.steps to about" in result["advice"]
    assert next(iter(result)) == "flux_barrier_eV"
    assert result["answer_iteration"] == 2
    names = [check["name"] for check in result["checks"]]
    assert names[:3] == ["end states", "crossings", "flux barrier"]
    (variable,) = [check for check in result["checks"] if check["name"] == "collective variable"]
    assert "1 - cos is" in variable["sentence"]
    for n, part in enumerate(result["iterations"], start=1):
        assert 0 < part["similarity"] <= 1
        assert part["similarity_worst"] >= part["similarity_at_surface"] >= 0
        assert (part["similarity_floor"] is None) == (n == 1)  # below iteration.minimum
        assert part["crossings"] >= 1
    assert result["md_steps"] == 2 * STEPS
    assert [part["cv"] for part in result["iterations"]] == ["cv-0.safetensors", "cv-1.safetensors"]
    assert (finished / "profiles.png").stat().st_size > 10_000
    profile = freeenergy.read_fes(finished / "fes.dat")
    assert profile.barrier.value == pytest.approx(result["barrier_eV"], abs=1e-9)


def test_learned_cv_keeps_the_end_states(finished: Path) -> None:
    for n in (1, 2):
        learned = CollectiveVariable.load(finished / f"cv-{n}.safetensors")
        ends = learned.encode(learned.components(learned.end_displacements))[:, 0]
        np.testing.assert_allclose(ends, [0, 1], atol=1e-10)


def test_snapshots_agree_with_what_plumed_printed(finished: Path) -> None:
    folder = finished / "iteration-1"
    variable = CollectiveVariable.load(finished / "cv-0.safetensors")
    snapshots = sorted(folder.glob("segment-*/snapshots.dcd"))
    species = load_path(finished / "path.xyz").species
    u = read_displacements(snapshots, variable, variable.reference_cell, species=species)
    xi = variable.encode(variable.components(u))[:, 0]
    printed = workflow.read_samples(folder).series["ae.node-0"]
    # DCD is single precision: 1e-6 of the cell in each coordinate.
    np.testing.assert_allclose(xi, np.concatenate(printed), atol=2e-6)


def test_killed_at_any_time_it_ends_with_the_same_answer(example: Path, finished: Path) -> None:
    whole = json.loads((finished / "result.json").read_text())
    run = example / "killed"
    line = [sys.executable, "-m", "plumed_cv.cli", "run", "vacancy.toml", "--dir", "killed"]
    rng = np.random.default_rng(5)
    kills = 0
    while not (run / "result.json").exists() and kills < 12:
        with (example / "killed.log").open("w") as log:
            process = subprocess.Popen(
                line, cwd=example, stdout=log, stderr=log, start_new_session=True
            )
            while kills == 0 and process.poll() is None and not list(run.glob("*/segment-*")):
                time.sleep(0.01)  # the first kill hits the sampling, however fast the machine
            time.sleep(0.05 if kills == 0 else rng.uniform(2, 6))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.wait()
    assert kills > 0
    done = called("run", example / "vacancy.toml", "--dir", run, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for part, other in zip(result["iterations"], whole["iterations"], strict=True):
        for key in ("barrier_eV", "barrier_error_eV", "similarity", "md_steps"):
            assert part[key] == other[key], key
    assert not list(run.rglob("unfinished-*"))


def test_a_finished_run_is_not_run_again(example: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("segment.json")}
    done = called("run", example / "vacancy.toml")
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("segment.json")}


def test_another_input_or_a_second_run_is_refused(example: Path, finished: Path) -> None:
    other = example / "other.toml"
    other.write_text(INPUT.replace("300.0", "310.0"))
    done = called("run", other, "--dir", finished)
    assert done.returncode == 1
    assert "another system.temperature_K" in done.stderr
    assert done.stderr.count("\n") == 1
    with claimed(finished):
        done = called("run", example / "vacancy.toml")
    assert done.returncode == 1
    assert "another run is at work" in done.stderr


def test_fewer_whole_snapshots_change_no_number(
    example: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and mean force use only the records of the CV's atoms."""
    monkeypatch.setattr(task, "MOST_BYTES", 150_000)
    file = example / "thin.toml"
    file.write_text(INPUT.replace("maximum = 2", "maximum = 1\nminimum = 1"))
    workflow.run(input_file.load(file), example / "thin")
    one, other = (folder / "iteration-1" for folder in (finished, example / "thin"))
    first, second = (json.loads((each / "result.json").read_text()) for each in (one, other))
    for name in ("flux_barrier_eV", "barrier_eV", "similarity"):
        assert first[name] == second[name]
    sizes = [
        [file.stat().st_size for file in sorted(each.glob("segment-*/snapshots.dcd"))]
        for each in (one, other)
    ]
    assert 0 < sum(sizes[1]) < sum(sizes[0]) / 3


def test_guard_starts_again_and_keeps_the_averages(example: Path, finished: Path) -> None:
    """Eq. 21 with a limit that the same run without a guard exceeds rarely."""
    deviations = workflow.read_samples(finished / "iteration-1").series["ae.dev"]
    limit = 0.999 * np.concatenate(deviations[:4]).max()  # of eight segments
    file = example / "guard.toml"
    limited = INPUT.replace("timestep_fs", f"deviation_limit_A = {limit}\ntimestep_fs")
    file.write_text(limited.replace("maximum = 2", "maximum = 1\nminimum = 1"))
    result = workflow.run(input_file.load(file), example / "guard")
    folder = example / "guard" / "iteration-1"
    parts = [json.loads(f.read_text()) for f in sorted(folder.glob("segment-*/segment.json"))]
    stops = sum(part["stopped"] for part in parts)
    assert 0 < stops < len(parts)
    assert result["md_steps"] == sum(part["n_steps"] for part in parts) == STEPS
    assert result["iterations"][0]["restarts"] == stops
    places = result["iterations"][0]["restarted_at"]
    assert len(places) == stops
    assert all(place["deviation_A"] > limit for place in places)
    done = called("export", example / "guard", example / "exported")
    assert done.returncode == 0, done.stderr
    for file in (example / "exported", example / "guard"):  # both are guarded as the run was
        guard = f"COMMITTOR ARG=ae.dev BASIN_LL1={limit}"
        assert guard in (file / "plumed.dat").read_text()
    last = freeenergy.read_state(sorted(folder.glob("segment-*/babf.state"))[-1])
    # The first 0.4 ps, in which the atoms come to the temperature, are no samples.
    assert last.steps == STEPS - 199


def test_a_path_of_the_users_own(example: Path, finished: Path, tmp_path: Path) -> None:
    """The images of a finished run, as bare positions: the engine computes what they lack."""
    images = [image.copy() for image in load_path(finished / "path.xyz").images]
    ase.io.write(tmp_path / "own.traj", images)
    file = tmp_path / "own.toml"
    ends = 'initial = "initial.xyz"\nfinal = "final.xyz"\n'
    assert ends in INPUT
    text = INPUT.replace(ends, "").replace("[path]", '[path]\nfile = "own.traj"')
    file.write_text(text.replace("maximum = 2", "maximum = 1\nminimum = 1"))
    result = workflow.run(input_file.load(file), tmp_path / "run")
    whole = json.loads((finished / "result.json").read_text())
    assert result["energy_barrier_0K_eV"] == pytest.approx(whole["energy_barrier_0K_eV"], abs=1e-6)
    assert result["barrier_eV"] > 0
    assert workflow.run(input_file.load(file), tmp_path / "run") == result
    ase.io.write(tmp_path / "own.traj", images[::-1])
    with pytest.raises(UserError, match=r"another path\.file"):
        workflow.run(input_file.load(file), tmp_path / "run")


def test_train_fes_and_export(example: Path, finished: Path, tmp_path: Path) -> None:
    snapshots = sorted((finished / "iteration-1").glob("segment-*/snapshots.dcd"))
    model = tmp_path / "cv.safetensors"
    done = called(
        "train", *snapshots, "--initial", example / "initial.xyz", "--final", example / "final.xyz",
        "--components", "5", "-o", model,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{(STEPS - 200) // 10} structures" in done.stdout
    variable = CollectiveVariable.load(model)
    assert variable.n_components == 5
    done = called(
        "train", *snapshots, "--initial", example / "initial.xyz", "--final", example / "final.xyz",
        "--components", "5", "--latent", "2", "--recipe", "paper", "--device", "auto", "-o", model,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert CollectiveVariable.load(model).n_latent == 2
    profile = tmp_path / "fes.dat"
    done = called("fes", finished / "iteration-2", "-o", profile, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "result.json").read_text())
    assert json.loads(done.stdout)["barrier_eV"] == pytest.approx(result["barrier_eV"])
    states = sorted((finished / "iteration-2").glob("segment-*/babf.state"))
    done = called("fes", *states, "-o", profile, "--json", "--picture", tmp_path / "fes.png")
    of_states = json.loads(done.stdout)["barrier_eV"]  # which know nothing of forces on atoms
    assert of_states == pytest.approx(result["histogram_barrier_eV"])
    # Beside each state lies a colvar whose plumed.dat says angstrom, as in an exported run.
    found = workflow.read_samples(finished / "iteration-2")
    xi, norm, mass = (found.series[f"ae.{name}"] for name in ("node-0", "gradnorm", "invmass"))
    flux = freeenergy.estimate_flux(found.blocks, xi, norm, mass)
    said = json.loads(done.stdout)
    assert said["flux_barrier_eV"] == pytest.approx(flux.barrier.value)
    assert said["tst_rate_per_s"] == pytest.approx(flux.rate_per_s.value)
    for k, state in enumerate(states[:2]):
        shutil.copytree(state.parent, tmp_path / f"nm-{k}")
        lines = tmp_path / f"nm-{k}" / "plumed.dat"
        lines.write_text(lines.read_text().replace("LENGTH=A", "LENGTH=nm"))
    done = called("fes", tmp_path / "nm-0/babf.state", tmp_path / "nm-1/babf.state", "--json",
                   "-o", profile)  # fmt: skip
    assert done.returncode == 1
    assert "nm" in done.stderr
    done = called("export", finished, tmp_path / "production")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "production" / "plumed.dat").read_text()
    assert "TEMP=300" in text
    assert f"RAMP={STEPS}" in text
    assert "COMMITTOR ARG=ae.maxdev" in text
    done = called("export", finished, tmp_path / "with-torch", "--torch")
    assert done.returncode == 0, done.stderr
    assert "TORCH_CV MODEL=cv.pt ATOMS=2,4,6,8" in done.stdout  # the atoms that take part
    assert {file.name for file in (tmp_path / "with-torch").iterdir()} == {
        *("cv.pt", "cv.safetensors", "plumed.dat")
    }


def test_head_starts_and_an_expanded_cell(example: Path, plugin: Path) -> None:
    file = example / "head.toml"
    text = INPUT.replace("[engine]", "expansion = [1e-5, 2e-8]\n[engine]")
    file.write_text(text.replace("timestep_fs", 'prior = "previous"\ntimestep_fs'))
    run = example / "head"
    result = workflow.run(input_file.load(file), run)
    stretch = 1 + 1e-5 * 300 + 2e-8 * 300**2
    given = ase.io.read(example / "initial.xyz")
    assert isinstance(given, Atoms)
    np.testing.assert_allclose(result["cell_A"], given.cell.array * stretch, rtol=1e-9)
    # What the second iteration starts from has the barrier that the first one found.
    assert not (run / "iteration-1" / "prior.dat").exists()
    first, second = (
        freeenergy.read_state(run / f"iteration-{n}" / "segment-000000" / "babf.state")
        for n in (1, 2)
    )
    assert not first.prior.any()
    assert second.tau == pytest.approx(100 * 101 / 2 / STEPS)
    start = np.cumsum(second.prior) * second.grid.spacing
    found = freeenergy.read_fes(run / "iteration-1" / "fes.dat").A
    assert np.ptp(start) == pytest.approx(np.nanmax(found) - np.nanmin(found), rel=0.1)
    assert json.loads((run / "input.json").read_text())["sampling"]["prior"] == "previous"
    # The production input goes on from the state, whose weight of the prior is its own.
    assert f"TAU={second.tau}" in (run / "plumed.dat").read_text()
    file.write_text(INPUT.replace("[engine]", "expansion = [1e-3]\n[engine]"))
    with pytest.raises(UserError, match=r"the cell would be 1.3 times as long"):
        workflow.run(input_file.load(file), run)


def test_energy_along_the_path_as_a_head_start(example: Path, plugin: Path) -> None:
    file = example / "energy.toml"
    text = INPUT.replace("timestep_fs", 'prior = "energy"\ntimestep_fs')
    file.write_text(text.replace("maximum = 2", "maximum = 1\nminimum = 1"))
    run = example / "energy"
    workflow.run(input_file.load(file), run)
    path, variable = load_path(run / "path.xyz"), CollectiveVariable.load(run / "cv-0.safetensors")
    state = freeenergy.read_state(run / "iteration-1" / "segment-000000" / "babf.state")
    xi = energy.values_at_images(path, variable)
    slope = np.gradient(np.interp(state.grid.nodes, xi, path.energies), state.grid.spacing)
    inner = slice(1, -1)
    np.testing.assert_allclose(state.prior[inner], slope[inner], atol=0.35 * np.abs(slope).max())
    assert np.corrcoef(state.prior, slope)[0, 1] > 0.98


def test_guard_that_never_opens_is_refused(example: Path, plugin: Path) -> None:
    file = example / "tight.toml"
    file.write_text(INPUT.replace("timestep_fs", "deviation_limit_A = 0.2\ntimestep_fs"))
    with pytest.raises(
        UserError, match=r"left the mean path before|ended the last 20 trajectories at once"
    ):
        workflow.run(input_file.load(file), example / "tight")


def test_a_run_that_never_arrives_has_no_barrier(example: Path, plugin: Path) -> None:
    """Sixty steps have no crossing: no barrier is given, and the exit status is not 0."""
    file = example / "brief.toml"
    file.write_text(
        INPUT.replace(f"steps = {STEPS}", "steps = 60").replace("ments = 8", "ments = 6")
    )
    done = called("run", file, "--dir", example / "brief")
    assert done.returncode == 1
    assert "its 60 steps did not reach both end states" in done.stderr
    assert not (example / "brief" / "result.json").exists()
    assert called("report", example / "brief").returncode == 0
    page = (example / "brief" / "report.html").read_text(encoding="utf-8")
    assert "The 60 steps of iteration 1 did not reach both end states" in page
    assert "Raise sampling.steps and run again." in page
    assert done.stderr.strip().splitlines()[-1].endswith("report.html shows what was sampled.")
    assert (example / "brief" / "report.html").exists()
    found = json.loads((example / "brief" / "iteration-1" / "result.json").read_text())
    assert found["barrier_eV"] is None
    assert found["md_steps"] == 60
    # It goes on from there when there are more.
    file.write_text(file.read_text().replace("steps = 60", "steps = 100"))
    done = called("run", file, "--dir", example / "brief")
    assert "its 100 steps did not reach both end states" in done.stderr
    parts = sorted((example / "brief" / "iteration-1").glob("segment-*/segment.json"))
    assert [json.loads(part.read_text())["n_steps"] for part in parts] == [10] * 10


def mistakes(example: Path, finished: Path, tmp: Path) -> dict[str, tuple[list[str | Path], str]]:
    """Typical mistakes: the command, and a part of the sentence that it must print."""

    def edited(name: str, *changes: tuple[str, str]) -> Path:
        text = INPUT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (example / name).write_text(text)
        return example / name

    def changed(name: str, change: Callable[[Atoms], object]) -> None:
        atoms = read_structure(example / "final.xyz")
        change(atoms)
        atoms.write(example / name, format="extxyz")

    changed("nan.xyz", lambda atoms: atoms.positions.__setitem__(0, np.nan))
    changed("fewer.xyz", lambda atoms: atoms.pop())
    changed("species.xyz", lambda atoms: atoms.symbols.__setitem__(52, "Cr"))
    changed("cell.xyz", lambda atoms: atoms.set_cell(atoms.cell * 1.01))
    broken = tmp / "broken"
    shutil.copytree(finished, broken)
    (broken / "cv.safetensors").write_bytes((finished / "cv-1.safetensors").read_bytes()[:5000])
    state = tmp / "babf.state"
    whole = (finished / "iteration-1" / "segment-000003" / "babf.state").read_text()
    state.write_text(whole[: len(whole) // 2])
    run: list[str | Path] = ["run", "--dir", tmp / "run"]
    return {
        "missing input": ([*run, example / "none.toml"], "does not exist"),
        "missing structure": (
            [*run, edited("m1.toml", ("final.xyz", "none.xyz"))],
            "none.xyz: the file does not exist",
        ),
        "wrong atom count": (
            [*run, edited("m2.toml", ("final.xyz", "fewer.xyz"))],
            "53 atoms and the final state 52",
        ),
        "wrong species": (
            [*run, edited("m3.toml", ("final.xyz", "species.xyz"))],
            "Atom 53 is Fe in the initial and Cr in the final",
        ),
        "other cell": ([*run, edited("m4.toml", ("final.xyz", "cell.xyz"))], "different cells"),
        "not a number": (
            [*run, edited("m5.toml", ("final.xyz", "nan.xyz"))],
            "nan.xyz: needs at least two atoms with finite",
        ),
        "missing potential": (
            [*run, edited("m6.toml", ("Fe_mm.eam.fs", "Fe_none.eam.fs"))],
            "Fe_none.eam.fs",
        ),
        "unknown pair style": ([*run, edited("m7.toml", ("eam/fs\"", "eam/sf\""))], "eam/sf"),
        "temperature missing": (
            [*run, edited("m8.toml", ("temperature_K = 300.0", ""))],
            "system.temperature_K is missing",
        ),
        "two latent dimensions": (
            [*run, edited("m10.toml", ("[cv]", "[cv]\nlatent = 2"))],
            "cv.latent = 2: 'plumed-cv run' samples one latent dimension",
        ),
        "more components than the mean path has": (
            [*run, edited("m11.toml", ("components = 5", "components = 8\nfunctions = 6"))],
            "the mean path has 5; set cv.functions = 9",
        ),
        "unknown key": ([*run, edited("m9.toml", ("steps =", "stpes ="))], "no key sampling.stpes"),
        "truncated model": (["export", broken, tmp / "x"], "cv.safetensors: is truncated"),
        "truncated state": (["fes", state, "-o", tmp / "fes.dat"], "babf.state"),
        "no states": (["fes", tmp, "-o", tmp / "fes.dat"], "no finished segment"),
        "foreign trajectory": (
            ["train", example / "vacancy.toml", "--initial", example / "initial.xyz",
             "--final", example / "final.xyz"],
            "vacancy.toml: the format of this trajectory is unknown",
        ),
        "unknown example": (["init", "vacancy-xx"], "There is no example 'vacancy-xx'"),
        "run directory is a file": (
            ["run", example / "vacancy.toml", "--dir", example / "initial.xyz"],
            "cannot be used as a run directory",
        ),
    }  # fmt: skip


def test_typical_mistakes_are_one_sentence(example: Path, finished: Path, tmp_path: Path) -> None:
    for name, (arguments, sentence) in mistakes(example, finished, tmp_path).items():
        done = called(*arguments)
        assert done.returncode == 1, (name, done)
        assert sentence in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr, name
        assert done.stderr.strip().count("\n") == 0, (name, done.stderr)


def test_damaged_files_of_a_run_are_named(example: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    (run / "iteration-2" / "result.json").unlink()
    (run / "iteration-2" / "segment-000004" / "babf.state").write_text("#! FIELDS")
    with pytest.raises(UserError, match="segment-000004"):
        workflow.run(input_file.load(example / "vacancy.toml"), run)


def test_help_has_examples() -> None:
    verbs = (
        "doctor",
        "plugin",
        "plumed",
        "init",
        "path",
        "energy",
        "train",
        "run",
        "fes",
        "export",
    )
    for verb in verbs:
        done = called(verb, "--help")
        assert done.returncode == 0
        assert len(done.stdout) > 100
    assert "sampling.friction_per_ps" in called("run", "--keys").stdout
    assert called("nonsense").returncode == 2
