"""Continued runs: more steps, iterations or repetitions, removed segments.

A short run of the iron vacancy in a 54-atom crystal, finished once and copied for each test.
"""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumed_cv import freeenergy, input_file, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log
from plumed_cv.setup.kernel import WHEEL, find_plumed
from plumed_cv.workflow import procedure, provenance, speed
from plumed_cv.workflow.repetitions import compute_odds
from python.drills import runs
from tests.vacancy import INPUT, STEPS, called

MORE = STEPS + STEPS // 4
HEATING = 200  # steps of a first segment that do not count
# So short a run may end before the limit, because more iterations do not mend it.
THREE = "minimum = 3\nmaximum = 3"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


class Telling(Log):
    """A reporter that records its messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def changed(example: Path, *changes: tuple[str, str]) -> input_file.Config:
    """The example's input with other values."""
    text = INPUT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (example / "changed.toml").write_text(text)
    return input_file.load(example / "changed.toml")


def reopened(run: Path) -> Path:
    """Remove the end of the second iteration and return its folder."""
    for name in ("result.json", "cv-2.safetensors", "iteration-2/result.json"):
        (run / name).unlink()
    return run / "iteration-2"


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_more_steps_extend_the_last_iteration(example: Path, run: Path) -> None:
    first, second = files_of(run / "iteration-1"), files_of(run / "iteration-2")
    learned = (run / "cv-2.safetensors").read_bytes()
    more = changed(example, (f"steps = {STEPS}", f"steps = {MORE}"))
    told = Telling()
    result = workflow.run(more, run, told)
    assert f"keeps its ramp of {STEPS:,} steps" in told.said[0]
    assert f"would have {MORE:,}." in told.said[0]
    assert [part["md_steps"] for part in result["iterations"]] == [STEPS, MORE]
    assert files_of(run / "iteration-1") == first
    now = files_of(run / "iteration-2")
    segments = {name for name in second if name.startswith("segment-")}
    assert {name: now[name] for name in segments} == {name: second[name] for name in segments}
    state = freeenergy.read_state(run / "babf.state")
    assert state.steps == MORE - HEATING + 1
    assert state.ramp == STEPS  # of the first step: BABF refuses a state with another one
    assert f"RAMP={STEPS} " in (run / "plumed.dat").read_text()
    assert (run / "cv-2.safetensors").read_bytes() != learned
    assert json.loads((run / "training-2.json").read_text())["structures"] == (MORE - HEATING) // 10
    assert json.loads((run / "input.json").read_text())["sampling"]["steps"] == MORE
    # An iteration that is new begins with the new number.
    more = changed(example, (f"steps = {STEPS}", f"steps = {MORE}"), ("maximum = 2", THREE))
    result = workflow.run(more, run)
    assert [part["md_steps"] for part in result["iterations"]] == [STEPS, MORE, MORE]
    assert files_of(run / "iteration-2") == now
    last = sampling.list_segments(run / "iteration-3")[-1]
    assert freeenergy.read_state(last / "babf.state").ramp == MORE


class HeardError(Exception):
    """Ends a run at a sentence about PLUMED's kernel."""


class Listener(Log):
    def say(self, text: str) -> None:
        if "kernel" in text:
            raise HeardError(text)


@pytest.mark.parametrize(("optimised", "steps"), [(False, 8 * 10**8), (False, MORE), (True, MORE)])
def test_a_long_run_says_what_a_faster_kernel_would_save(
    example: Path, run: Path, monkeypatch: pytest.MonkeyPatch, optimised: bool, steps: int
) -> None:
    """On any machine, 800 million steps take hours and 2000 take seconds."""
    plumed = replace(find_plumed(), optimised=optimised, source=WHEEL)
    monkeypatch.setattr(procedure, "find_plumed", lambda: plumed)
    more = (f"steps = {STEPS}", f"steps = {steps}")
    longer = changed(example, more, ("segments = 8", f"segments = {steps // 1000}"))
    if steps == MORE:
        workflow.run(longer, run, Listener())
        return
    with pytest.raises(HeardError) as heard:
        workflow.run(longer, run, Listener())
    found = re.fullmatch(
        r"PLUMED takes (\d+) % of this sampling, .* would take (\d+) h (\d+) min or less and not "
        r"(\d+) h (\d+) min. Interrupt the run, run `plumed-cv plumed --optimised` once .*",
        str(heard.value),
    )
    assert found
    share, hours, minutes, all_hours, all_minutes = map(int, found.groups())
    assert 0 < share <= 100
    ratio = (60 * hours + minutes) / (60 * all_hours + all_minutes)
    assert ratio == pytest.approx(1 - 0.75 * share / 100, abs=0.01)


def test_the_time_that_plumed_took_is_in_its_log(run: Path) -> None:
    folder = sampling.list_segments(run / "iteration-2")[-1]
    seconds = speed.read_plumed_seconds(folder / "plumed.log")
    assert seconds is not None
    assert 0 < seconds < json.loads((folder / "segment.json").read_text())["seconds"]
    (folder / "plumed.log").write_text("PLUMED: PLUMED is starting\n")
    assert speed.read_plumed_seconds(folder / "plumed.log") is None
    assert speed.read_plumed_seconds(folder / "missing.log") is None


def test_a_kill_changes_nothing_in_what_is_added(example: Path, run: Path, tmp_path: Path) -> None:
    more = changed(example, (f"steps = {STEPS}", f"steps = {MORE}"))
    other = tmp_path / "stopped"
    shutil.copytree(run, other)
    # As after a kill between the end of a segment and the next one.
    for name in ("result.json", "cv-2.safetensors", "training-2.json"):
        (other / name).unlink()
    whole = workflow.run(more, run)
    shutil.copytree(run / "iteration-2" / "segment-000008", other / "iteration-2/segment-000008")
    assert runs.contents(run) != runs.contents(other)
    assert workflow.run(more, other)["barrier_eV"] == whole["barrier_eV"]
    assert runs.contents(run) == runs.contents(other)


def test_iterations_are_added_and_those_that_ended_count(example: Path, run: Path) -> None:
    before = files_of(run / "iteration-2")
    result = workflow.run(changed(example, ("maximum = 2", THREE)), run)
    assert [part["iteration"] for part in result["iterations"]] == [1, 2, 3]
    assert not result["converged"]
    assert files_of(run / "iteration-2") == before
    again = workflow.run(changed(example), run)  # which asks for two
    assert again | {"advice": ""} == result | {"advice": ""}  # which names the limit
    loose = changed(example, ("tolerance = 1e-9", "tolerance = 3.0"))
    result = workflow.run(loose, run)
    assert len(result["iterations"]) == 3
    (judged,) = (c for c in result["checks"] if c["name"] == "collective variable")
    assert "equivalent up to 3 " in judged["sentence"]
    assert (
        workflow.run(changed(example, ("maximum = 2", "maximum = 4")), run)["iterations"][:3]
        == (again["iterations"])
    )


def test_repetitions_are_independent_and_put_together(example: Path, run: Path) -> None:
    alone = json.loads((run / "result.json").read_text())
    first = files_of(run / "iteration-1")
    twice = changed(example, (f"steps = {STEPS}", f"steps = {STEPS}\nrepetitions = 2"))
    result = workflow.run(twice, run)
    assert files_of(run / "iteration-1") == first
    assert [part["md_steps"] for part in result["iterations"]] == [STEPS, 2 * STEPS]
    folder = run / "iteration-2"
    one, other = sampling.list_repetitions(folder)
    assert len(one) == len(other) == 8
    assert {segment.parent.name for segment in other} == {"repetition-0001"}
    last = result["iterations"][-1]
    # Repetitions are compared by their own samples: those of iteration 1, which count in the answer
    # of each of them, would make them agree.
    own = alone["estimators"]["mean force of the atoms"]
    for key in ("flux_barrier_eV", "flux_barrier_error_eV", "delta_F_eV", "delta_F_error_eV"):
        # The estimate is found by iteration, to rounding.
        assert last["repetitions"][0][key] == pytest.approx(own[key], rel=1e-6)
        assert last["repetitions"][1][key] != own[key]
    # What is put together are sums of two runs of which neither knew of the other.
    states = [freeenergy.read_state(segments[-1] / "babf.state") for segments in (one, other)]
    total = freeenergy.read_state(run / "babf.state")
    assert total.steps == 2 * (STEPS - HEATING + 1)
    np.testing.assert_array_equal(total.sums, states[0].sums + states[1].sums)
    log = (other[0] / "plumed.log").read_text()
    assert "no other walker" in log
    assert (
        json.loads((run / "training-2.json").read_text())["structures"]
        == 2 * (STEPS - HEATING) // 10
    )
    assert last["repetitions_agree"] in (True, False, None)
    assert (last["repetitions_note"] is not None) == (last["repetitions_agree"] is False)
    assert called("report", run).returncode == 0


def test_repetitions_agree_by_chi_squared() -> None:
    """The difference of two values with equal errors is normal, with sqrt(2) of the error."""
    for difference in (0.0, 1.0, 4.0):
        pair, errors = np.array([0.5, 0.5 + 0.01 * difference]), np.array([0.01, 0.01])
        assert compute_odds(pair, errors) == pytest.approx(math.erfc(difference / 2))


def test_jobs_do_what_was_added(example: Path, run: Path) -> None:
    file = example / "repeated.toml"
    file.write_text(INPUT.replace(f"steps = {STEPS}", f"steps = {STEPS}\nrepetitions = 2"))
    done = called("run", file, "--dir", run, "--inputs-only")
    assert done.returncode == 3, done.stderr
    assert "for walker in 1;" in (run / "iteration-2" / "job.sh").read_text()
    done = called("sample", file, "--dir", run, "--walker", "2")
    assert done.returncode == 1
    assert "sampling.walkers x sampling.repetitions = 2" in done.stderr
    done = called("sample", file, "--dir", run, "--walker", "1")
    assert done.returncode == 0, done.stderr
    done = called("run", file, "--dir", run, "--inputs-only", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iterations"][1]["md_steps"] == 2 * STEPS


def test_a_record_of_an_earlier_version_is_gone_on_with(example: Path, run: Path) -> None:
    record: dict[str, Any] = json.loads((run / "input.json").read_text())
    before = files_of(run / "iteration-2")
    later = ("sampling.repetitions", "sampling.mean_force", "cv.symmetry", "engine.coupling")
    for section, key in (name.split(".") for name in later):
        del record[section][key]
    del record["iteration"]["seed"]  # the input's is 3, and the default 1
    (run / "input.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"another iteration\.seed: 1, and now it is 3; restore"):
        workflow.run(input_file.load(example / "vacancy.toml"), run)
    record["iteration"]["seed"] = 3
    (run / "input.json").write_text(json.dumps(record))
    workflow.run(input_file.load(example / "vacancy.toml"), run)
    assert files_of(run / "iteration-2") == before
    assert json.loads((run / "input.json").read_text())["sampling"]["repetitions"] == 1


def test_a_default_of_an_earlier_version_is_named_and_goes_on(example: Path, run: Path) -> None:
    """Earlier versions had a margin of 0.2, which they recorded."""
    record: dict[str, Any] = json.loads((run / "input.json").read_text())
    record["sampling"]["margin"] = 0.2
    (run / "input.json").write_text(json.dumps(record))
    text = (example / "vacancy.toml").read_text()
    with pytest.raises(UserError) as refused:
        workflow.run(input_file.load(example / "vacancy.toml"), run)
    assert "now it is null; restore the input (sampling.margin = 0.2) or name a new" in str(
        refused.value
    )
    (run.parent / "old.toml").write_text(text.replace("[sampling]", "[sampling]\nmargin = 0.2"))
    for name in ("initial.xyz", "final.xyz"):
        shutil.copy(example / name, run.parent)
    before = files_of(run / "iteration-2")
    workflow.run(input_file.load(run.parent / "old.toml"), run)
    assert files_of(run / "iteration-2") == before


def test_what_may_change_and_what_may_not(example: Path, tmp_path: Path) -> None:
    inputs, root = tmp_path / "inputs", tmp_path / "root"
    inputs.mkdir()
    root.mkdir()
    for name in ("initial.xyz", "final.xyz"):
        shutil.copy(example / name, inputs)
    (inputs / "iron.lmp").write_text("pair_style eam/fs\npair_coeff * * Fe_mm.eam.fs Fe\n")
    potential = 'potential = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]'
    assert potential in INPUT
    text = INPUT.replace(potential, 'potential = "iron.lmp"')

    def check(text: str) -> None:
        (inputs / "vacancy.toml").write_text(text)
        provenance.check_same_input(root, input_file.load(inputs / "vacancy.toml"))

    check(text)
    # Files that have other names, or lie elsewhere.
    (inputs / "iron.lmp").rename(inputs / "iron-mm.lmp")
    (inputs / "initial.xyz").rename(inputs / "before.xyz")
    text = text.replace("iron.lmp", "iron-mm.lmp").replace("initial.xyz", "before.xyz")
    check(text)
    check(text.replace("segments = 8", "segments = 10").replace(f"= {STEPS}", f"= {MORE}"))
    check(text.replace("[engine]", '[engine]\ncoupling = "external"').replace("1e-9", "0.2"))
    for old, new, sentence in (
        ("fs = 2.0", "fs = 1.0", r"sampling\.timestep_fs: 2\.0, and now it is 1\.0"),
        ("segments = 8", "segments = 8\nwalkers = 2", r"sampling\.walkers: 1, and now it is 2"),
        ("components = 5", "", r"cv\.components: 5, and now it is null"),
        ("before.xyz", "final.xyz", r"system\.initial; restore"),
    ):
        with pytest.raises(UserError, match=f"{root}: was started with another {sentence}"):
            check(text.replace(old, new))
    both = text.replace("components = 5", "").replace("fs = 2.0", "fs = 1.0")
    with pytest.raises(UserError, match=r"restore the input \(cv\.components = 5, sampling\.time"):
        check(both)
    (inputs / "iron-mm.lmp").write_text("pair_style eam/fs\npair_coeff * * Fe_2.eam.fs Fe\n")
    with pytest.raises(UserError, match=r"another engine\.potential"):
        check(text)


def test_a_changed_module_of_the_calculator_is_another_engine(
    example: Path, tmp_path: Path
) -> None:
    """The module lies beside the input; records of earlier versions do not have it."""
    inputs, root = tmp_path / "inputs", tmp_path / "root"
    root.mkdir()
    (inputs / "models").mkdir(parents=True)
    for name in ("initial.xyz", "final.xyz"):
        shutil.copy(example / name, inputs)
    module = inputs / "models" / "iron.py"
    module.write_text("from ase.calculators.emt import EMT as make, EMT as other\n")
    a, b = INPUT.index("[engine]"), INPUT.index("[sampling]")

    def check(name: str) -> None:
        engine = f'[engine]\nname = "ase"\ncalculator = "{name}"\n'
        (inputs / "input.toml").write_text(INPUT[:a] + engine + INPUT[b:])
        provenance.check_same_input(root, input_file.load(inputs / "input.toml"))

    check("models.iron.make")
    module.rename(module.with_name("same.py"))
    check("models.same.make")
    with pytest.raises(UserError, match=r"another engine\.calculator"):
        check("models.same.other")
    module = module.with_name("same.py")
    module.write_text(module.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"another engine\.calculator"):
        check("models.same.make")
    record = json.loads((root / "input.json").read_text())
    del record["engine"]["files"]["models/same.py"]
    (root / "input.json").write_text(json.dumps(record))
    check("models.same.make")


def test_keys_that_may_change_are_those_of_the_page() -> None:
    names = {name for name, _, _ in input_file.describe_keys()}
    page = Path("docs/command-line.md").read_text()
    for key in provenance.MAY_CHANGE:
        assert any(name.split(" ")[0] == key for name in names), key
        assert f"`{key}`" in page, key


def test_a_segment_removed_at_the_end_is_sampled_again(
    example: Path, run: Path, finished: Path
) -> None:
    whole = runs.contents(finished)
    shutil.rmtree(reopened(run) / "segment-000007")
    workflow.run(input_file.load(example / "vacancy.toml"), run)
    assert runs.contents(run) == whole


def test_a_segment_removed_in_the_middle_leaves_a_gap(example: Path, run: Path) -> None:
    folder = reopened(run)
    shutil.rmtree(folder / "segment-000003")
    (folder / "segment-000005" / "segment.json").unlink()  # the rest of its folder is left over
    (folder / "segment-000004" / "end.npz").unlink()  # which nothing starts from
    result = workflow.run(input_file.load(example / "vacancy.toml"), run)
    names = [segment.name for segment in sampling.list_segments(folder)]
    assert names == [f"segment-{k:06d}" for k in (0, 1, 2, 4, 6, 7, 8, 9)]
    assert result["iterations"][1]["md_steps"] == STEPS
    # The states know of all that was sampled, that of the gap included.
    blocks, mean_force = sampling.read_learned(folder)
    last = freeenergy.read_state(folder / "segment-000009" / "babf.state")
    assert last.steps == STEPS + 2 * STEPS // 8 - HEATING + 1
    np.testing.assert_allclose(sum(block.sums for block in blocks), last.sums, rtol=1e-12)
    assert mean_force is not None
    assert [int(part[0].sum()) <= STEPS // 80 for part in mean_force] == [True] * 8
    assert (
        json.loads((run / "training-2.json").read_text())["structures"] == (STEPS - HEATING) // 10
    )
    # A folder that is left over where the next segment belongs is in nobody's way.
    (folder / "segment-000009" / "segment.json").unlink()
    for name in ("result.json", "cv-2.safetensors", "iteration-2/result.json"):
        (run / name).unlink()
    again = workflow.run(input_file.load(example / "vacancy.toml"), run)
    assert again["barrier_eV"] == result["barrier_eV"]


def test_a_damaged_segment_is_named_with_its_remedy(example: Path, run: Path) -> None:
    folder = reopened(run)
    shutil.rmtree(folder / "segment-000007")
    line = ("run", example / "vacancy.toml", "--dir", run)
    for file, k in (
        ("babf.state", 3),
        ("babf.state", 6),
        ("end.npz", 6),  # where the next one starts
        ("colvar", 2),
        ("mean-force.dat", 4),
    ):
        damaged = folder / f"segment-{k:06d}" / file
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        done = called(*line)
        assert done.returncode == 1
        assert f"{damaged}: " in done.stderr
        assert f"remove the folder {damaged.parent} and run again" in done.stderr
        assert runs.is_a_sentence(done.stderr)
        # States and the start are looked at before a step is done.
        assert (folder / "segment-000007").exists() == (file in ("colvar", "mean-force.dat"))
        damaged.write_bytes(content)
    damaged.unlink()
    shutil.rmtree(damaged.parent)
    done = called(*line)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["iterations"][1]["md_steps"] == STEPS
