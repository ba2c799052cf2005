"""Events discovered from one state, compared with symmetry and an elastic band."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, molecule
from ase.constraints import FixAtoms
from ase.geometry import find_mic, get_distances

from plumed_cv import input_file, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log
from plumed_cv.events import (
    Confidence,
    Searcher,
    discover,
    find_defect_atoms,
    notebook,
    read_catalogue,
)
from plumed_cv.events.notebook import ABOVE_LOWEST
from plumed_cv.events.parallel import Ahead
from plumed_cv.events.saddles import Outcome
from plumed_cv.paths import find_minimum_energy_path
from plumed_cv.setup.tools import n_cores
from plumed_cv.structures import cell_of, held_atoms, read_structure
from python import discovery as script
from python import surfaces
from python.benchmarks import searches
from python.drills import runs
from python.zero_kelvin import systems
from tests import pages, vacancy
from tests.test_jumps import EMT_INPUT

A_CU = 3.6
ENOUGH = 0.8  # confidence: six searches that find a vacancy's event


def copper_vacancy() -> Atoms:
    atoms: Atoms = bulk("Cu", "fcc", a=A_CU, cubic=True).repeat(2)
    del atoms[0]
    return atoms


def write_case(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    copper_vacancy().write(folder / "cu.xyz")
    (folder / "cu.toml").write_text(EMT_INPUT)
    return folder / "cu.xyz", folder / "cu.toml"


@pytest.fixture(scope="module")
def of_copper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("copper")
    structure, given = write_case(folder)
    return folder, discover(structure, given, folder / "events", seed=3, confidence=ENOUGH)


def test_atoms_of_a_defect() -> None:
    """First and second neighbours of a vacancy in bcc; the adatom and the atoms below it."""
    found = find_defect_atoms(vacancy.end_states()[0])
    assert len(found) == 8 + 6
    initial, _ = surfaces.end_states()
    found = find_defect_atoms(initial)
    assert len(found) == 1 + 4
    assert len(initial) - 1 in found
    clean = initial[:-1]
    with pytest.raises(UserError, match="--around"):
        find_defect_atoms(clean[held_atoms(clean)])
    dumbbell = systems.dumbbell()[0]  # two of the last three atoms share a site
    found = find_defect_atoms(dumbbell)
    middle = 0.5 * (dumbbell.positions[-3] + dumbbell.positions[-2])
    _, apart = get_distances(middle, dumbbell.positions, cell=dumbbell.cell, pbc=True)
    assert 4 < len(found) <= 129 / 8
    assert apart[0][found].max() < 1.5 * systems.LATTICE_A


def test_atoms_of_a_defect_that_cannot_be_told() -> None:
    with pytest.raises(UserError, match=r"have the same surroundings.*--around"):
        find_defect_atoms(bulk("Fe", cubic=True).repeat(3))
    alloy = bulk("Fe", cubic=True).repeat(4)
    alloy.symbols[np.random.default_rng(1).permutation(128)[:64]] = "Cr"
    with pytest.raises(UserError, match=r"too different.*--around"):
        find_defect_atoms(alloy)


def test_an_ordered_alloy_has_kinds_of_its_own() -> None:
    """A perfect B2 crystal has no defect atoms; an exchanged pair is a defect."""
    crystal = bulk("NiAl", "cesiumchloride", a=2.9).repeat(4)
    crystal.symbols[0] = "Al"  # an antisite
    found = find_defect_atoms(crystal)
    apart = crystal.get_distances(0, found, mic=True)
    assert 0 in found
    assert apart.max() < 1.01 * 2.9


def test_fixed_atoms_are_not_moved() -> None:
    slab = fcc100("Cu", size=(4, 4, 3), a=A_CU, vacuum=6.0)
    del slab[-1]
    slab.set_constraint(FixAtoms([each.index for each in slab if each.tag == 3]))
    assert not set(find_defect_atoms(slab)) & set(held_atoms(slab).tolist())


def test_confidence_by_hand() -> None:
    assert Confidence.of([]).value == 0.0
    assert Confidence.of([1]).value == 0.0
    only = Confidence.of([1] * 21)
    assert (only.counted, only.events, only.known, only.rarest) == (21, 1, 20, 21)
    assert only.value == pytest.approx(0.95)
    # The second event was new in the fourth search; twenty known ones came after it.
    both = Confidence.of([1, 1, 1, 2, *[1] * 20])
    assert (both.counted, both.events, both.known, both.rarest) == (24, 2, 20, 1)
    assert both.value == pytest.approx(1.0 - (23 / 24) ** 24)
    assert Confidence.of([1, 2] * 4).value == pytest.approx(1 - 1 / 6)
    assert Confidence.of([1] * 50, [1, 2]).value == 0.0  # the second one is known, but not found
    many = Confidence.of([*range(9), *range(9), *range(9)])
    assert many.value == pytest.approx(1.0 - 10 * 0.9**27)


@pytest.mark.parametrize("n", [2, 5, 10, 20])
def test_confidence_is_that_of_equal_events(n: int) -> None:
    """Of all sequences that stop at 0.9, the share with a missing event is below 0.1.

    Events are drawn with equal probabilities, and a sequence is tested at each fifth one. The
    share is 0.04 at most, 16 of 400 sequences; 40 are six standard errors more.
    """
    rng = np.random.default_rng(2)
    missing = 0
    for _ in range(400):
        drawn: list[int] = []
        while Confidence.of(drawn).value < 0.9:
            drawn += rng.integers(n, size=5).tolist()
        missing += len(set(drawn)) < n
    assert missing < 40


def test_a_vacancy_has_one_event(of_copper: tuple[Path, dict[str, Any]]) -> None:
    folder, found = of_copper
    (event,) = found["events"]
    assert (event["id"], event["multiplicity"], event["reverse_multiplicity"]) == (
        "Cu-event-1", 12, 12,
    )  # fmt: skip
    assert event["energy_eV"] == 0.0
    assert event["passes"] is None
    assert event["copies"] == 12
    # The atom moves by the distance of nearest neighbours, but for the relaxation towards the hole.
    assert event["length_A"] == pytest.approx(A_CU / 2**0.5, rel=0.05)
    assert found["discovery"]["confidence"] >= ENOUGH
    assert found["discovery"]["max_barrier_eV"] == ABOVE_LOWEST * event["barrier_eV"]
    assert event["copies_found"] > 1  # of twelve

    catalogue = read_catalogue(folder / "events")
    (entry,) = catalogue.events
    assert entry.is_symmetric
    assert (entry.jump.multiplicity, entry.jump.reverse_multiplicity) == (12, 12)
    settings = catalogue.config(entry)
    assert settings.system.temperatures_K == (500.0, 700.0)
    ends = [read_structure(catalogue.folder(entry) / f"{n}.xyz") for n in ("initial", "final")]
    with sampling.open_engine(settings, ends[0]) as engine:
        path = find_minimum_energy_path(
            ends[0], ends[1], engine.calculator, n_images=5, fmax_eV_A=0.01
        )
    assert event["barrier_eV"] == pytest.approx(path.barrier, abs=5e-3)
    with pytest.raises(UserError, match="without the sites of a crystal"):
        _ = catalogue.network


def test_a_campaign_takes_the_catalogue(
    of_copper: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, found = of_copper
    catalogue = tmp_path / "events"
    shutil.copytree(folder / "events", catalogue)
    rates = workflow.run_campaign(catalogue, harmonic=True)
    assert not rates["failures"]
    assert [row["temperature_K"] for row in rates["rates"]] == [500.0, 700.0]
    assert {row["multiplicity"] for row in rates["rates"]} == {12}
    harmonic = json.loads((catalogue / "Cu-event-1" / "harmonic" / "harmonic.json").read_text())
    assert harmonic["barrier_eV"] == pytest.approx(found["events"][0]["barrier_eV"], abs=5e-3)
    with pytest.raises(UserError, match="without the sites of a crystal"):
        workflow.compute_diffusion(catalogue)


class Impatient(Log):
    """A reporter that interrupts after a new event."""

    def say(self, text: str) -> None:
        if "new event" in text:
            raise KeyboardInterrupt


def test_a_search_goes_on(of_copper: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Interrupted or repeated commands give the same lines as a single command."""
    folder, _ = of_copper
    structure, given = write_case(tmp_path)
    parts = tmp_path / "events"
    with pytest.raises(KeyboardInterrupt):
        discover(structure, given, parts, seed=3, confidence=ENOUGH, reporter=Impatient())
    file = parts / "search" / "searches.jsonl"
    expected = (folder / "events" / "search" / "searches.jsonl").read_text().splitlines()
    before = file.read_text().splitlines()
    assert before == expected[: len(before)]
    more = len(before) + 3
    few = discover(structure, given, parts, seed=3, confidence=ENOUGH, searches=more)
    assert few["discovery"]["searches"] == more
    assert few["discovery"]["confidence"] < ENOUGH
    assert file.read_text().splitlines() == expected[:more]
    assert read_catalogue(parts).events[0].id == "Cu-event-1"
    # No search so far went on above 2 eV, as those for higher barriers do.
    high = discover(structure, given, parts, seed=3, searches=more, max_barrier_eV=1.1)
    assert high["discovery"]["confidence"] == 0.0
    assert [event["id"] for event in high["events"]] == ["Cu-event-1"]
    with pytest.raises(UserError, match=r"has searches with another seed"):
        discover(structure, given, parts, seed=4)
    with pytest.raises(UserError, match=r"another around, radius_A"):
        discover(structure, given, parts, seed=3, around=[2], radius_A=3.0)


def files(folder: Path) -> dict[str, bytes]:
    """All files of a catalogue, without the lock."""
    found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if file.name != ".lock"}


two_cores = pytest.mark.skipif(n_cores() < 2, reason="this machine has one core, and two are used")


@two_cores
@pytest.mark.parametrize("potential", ["EMT", "LAMMPS", "surface"])
def test_the_number_of_jobs_changes_no_byte(
    potential: str, of_copper: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Both engines keep lists of neighbours, which change the last bits of later results.

    At a surface, LAMMPS's box depends on the structure with which it was started.
    """
    words: dict[str, Any] = {"seed": 3, "confidence": ENOUGH}
    if potential == "surface":
        words = {"searches": 4}
        case = "adatom on Cu(100)"
        expected = tmp_path / "one"
        structure, given, catalogue = script.prepare(case, expected)
        discover(structure, given, catalogue, **words)
        catalogue.rename(expected / "events")
        structure, given, _ = script.prepare(case, tmp_path / "two")
    elif potential == "LAMMPS":
        words = {"seed": 1, "confidence": 0.5}
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        expected = vacancy.write(tmp_path / "one", vacancy.SYSTEM).parent
        discover(expected / "initial.xyz", expected / "vacancy.toml", expected / "events", **words)
        given = vacancy.write(tmp_path / "two", vacancy.SYSTEM)
        structure = given.with_name("initial.xyz")
    else:
        expected, _ = of_copper
        structure, given = write_case(tmp_path / "two")
    discover(structure, given, tmp_path / "two" / "events", jobs=2, **words)
    found = files(tmp_path / "two" / "events")
    assert "search/searches.jsonl" in found
    assert "catalogue.json" in found
    assert found == files(expected / "events")


def test_searches_ahead_with_an_old_ceiling_are_done_again() -> None:
    """After the third search the ceiling rises, and after the sixth it falls."""
    begun: list[tuple[int, float]] = []
    lock = threading.Lock()

    def search(number: int, ceiling_eV: float) -> Outcome:
        with lock:
            begun.append((number, ceiling_eV))
        return Outcome(None, f"{number} {ceiling_eV}", number, 1)

    ceilings = [2.0, 2.0, 2.0, 2.5, 2.5, 2.5, 2.2, 2.2]
    with ThreadPoolExecutor(2) as pool:
        ahead = Ahead(pool, search, lambda: 2, len(ceilings))
        found = [ahead(number, ceiling).reason for number, ceiling in enumerate(ceilings, 1)]
    assert found == [f"{number} {ceiling}" for number, ceiling in enumerate(ceilings, 1)]
    assert {(number, 2.0) for number in range(1, 4)} <= set(begun)
    assert len(begun) == len(set(begun))  # none twice with the same ceiling
    assert max(number for number, _ in begun) == len(ceilings)


def started(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "plumed_cv.cli", "discover", str(folder / "cu.xyz")]
    words += ["-i", str(folder / "cu.toml"), "-o", str(folder / "events"), "--seed", "3"]
    words += ["--confidence", str(ENOUGH), *options]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def at_work(folder: Path, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Wait until there is a search; return all processes below the command."""
    deadline = time.monotonic() + 600
    while not (folder / "events" / "search" / "searches.jsonl").exists():
        assert process.poll() is None, "the command ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    below: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return below


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.slow
@two_cores
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_searches_that_were_ended_go_on(
    how: signal.Signals, of_copper: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    write_case(tmp_path)
    process = started(tmp_path, "--jobs", "2")
    below = at_work(tmp_path, process)
    assert len([each for each in below if "spawn_main" in words_of(each)]) == 2
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), said
    assert b"Traceback" not in said
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive  # nothing goes on in secret
    folder, _ = of_copper
    expected = files(folder / "events")
    assert len(files(tmp_path / "events")) < len(expected)
    again = started(tmp_path, "--jobs", "2")
    assert again.wait(timeout=600) == 0
    assert files(tmp_path / "events") == expected


@pytest.mark.slow
@two_cores
@pytest.mark.parametrize(
    ("jobs", "what", "sentence"),
    [
        (2, "spawn_main", "the process of a search was killed"),
        (2, "AseWorker", "the process of the engine was ended by signal 9"),
        (1, "AseWorker", "the process of the engine was ended by signal 9"),
    ],
)
def test_a_process_that_is_killed(
    jobs: int, what: str, sentence: str, of_copper: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """It is no result of a search: the same command repeats this search."""
    write_case(tmp_path)
    process = started(tmp_path, "--jobs", str(jobs))
    at_work(tmp_path, process)
    parents = [psutil.Process(process.pid)]
    if jobs == 2 and what == "AseWorker":  # not the one for new events
        parents = [each for each in parents[0].children() if "spawn_main" in words_of(each)]
    next(child for each in parents for child in each.children() if what in words_of(child)).kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert sentence in said.decode()
    assert "the same command continues" in said.decode()
    assert runs.is_a_sentence(said.decode())
    again = started(tmp_path)
    assert again.wait(timeout=600) == 0
    folder, _ = of_copper
    assert files(tmp_path / "events") == files(folder / "events")


@pytest.mark.slow
def test_searches_on_a_dask_cluster(of_copper: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from distributed import LocalCluster

    structure, given = write_case(tmp_path)
    words: dict[str, Any] = {"seed": 3, "confidence": ENOUGH}
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        discover(structure, given, tmp_path / "events", scheduler=address, **words)
    folder, _ = of_copper
    assert files(tmp_path / "events") == files(folder / "events")


def test_jobs_that_are_refused(tmp_path: Path) -> None:
    structure, given = write_case(tmp_path)
    for options, words in (
        (["--jobs", n_cores() + 1], "and each search needs one; use fewer jobs"),
        (["--jobs", 2, "--scheduler", "x"], "the scheduler decides this"),
        (["--scheduler", tmp_path / "none.json"], "none.json: there is no such file"),
    ):
        at = ("-i", given, "-o", tmp_path / "events")
        done = vacancy.called("discover", structure, *at, *map(str, options))
        assert done.returncode == 1
        assert words in done.stderr
        assert runs.is_a_sentence(done.stderr)


def test_searches_with_another_potential_are_refused(tmp_path: Path) -> None:
    """Even if its file has the same name."""
    structure, given = write_case(tmp_path)
    name = '.EMT"'
    given.write_text(EMT_INPUT.replace(name, f'{name}\narguments = {{ label = "cu.par" }}'))
    potential = tmp_path / "cu.par"
    potential.write_text("1")
    for _ in range(2):
        with pytest.raises(UserError, match="0 searches found no event"):
            discover(structure, given, tmp_path / "events", searches=0)
    potential.write_text("2")
    with pytest.raises(UserError, match=r"has searches with another engine\.files"):
        discover(structure, given, tmp_path / "events", searches=0)


def test_a_state_keeps_what_its_dynamics_depends_on(tmp_path: Path) -> None:
    structure, given = write_case(tmp_path)
    atoms = copper_vacancy()
    atoms.set_masses(2.0 * atoms.get_masses())
    atoms.set_initial_charges(np.linspace(0.0, 1.0, len(atoms)))
    atoms.set_array("tag", np.arange(len(atoms)))
    for file in (structure, tmp_path / "light.xyz"):
        atoms.write(file, format="extxyz")
        atoms.set_masses(None)
    with pytest.raises(UserError, match="0 searches found no event"):
        discover(structure, given, tmp_path / "events", searches=0)
    found = read_structure(tmp_path / "events" / "search" / "initial.xyz")
    np.testing.assert_allclose(found.get_masses(), 2.0 * copper_vacancy().get_masses())
    np.testing.assert_allclose(found.get_initial_charges(), np.linspace(0.0, 1.0, len(atoms)))
    assert "tag" not in found.arrays
    with pytest.raises(UserError, match="has searches with another structure"):
        discover(tmp_path / "light.xyz", given, tmp_path / "events", searches=0)


def test_a_saddle_point_of_another_state(of_copper: tuple[Path, dict[str, Any]]) -> None:
    """A minimum is not connected with the initial state, unless it lies between both."""
    folder, _ = of_copper
    event = folder / "events" / "Cu-event-1"
    initial, final, saddle = (
        read_structure(event / f"{name}.xyz") for name in ("initial", "final", "saddle")
    )
    given = input_file.load(event / "input.toml")
    with sampling.open_engine(given, initial) as engine:
        searcher = Searcher(engine, initial, find_defect_atoms(initial))
        of_final = Searcher(engine, final, find_defect_atoms(final))
        between = searcher.step(saddle)
        steps = []
        for seed in range(60):
            found = of_final.search(np.random.default_rng(seed), 1.5).saddle
            if found is None or not 0.3 < found.barrier_eV < 0.8:
                continue
            step = searcher.step(final) + found.step
            belongs = np.linalg.norm(step - between, axis=1).max() < 0.15
            same = searcher.final_state(type(found)(step, found.mode, found.barrier_eV))[0]
            assert (same is not None) == belongs
            steps.append(belongs)
            if len(steps) == 3:
                break
        assert False in steps


def test_another_minimum_that_is_known(
    of_copper: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The given event is in the catalogue; the confidence is 0 until a search finds it."""
    folder, found = of_copper
    structure, given = write_case(tmp_path)
    event = folder / "events" / "Cu-event-1"
    also = [event / "final.xyz", event / "initial.xyz"]
    few = discover(structure, given, tmp_path / "new", seed=3, searches=1, also=also)
    (known,) = few["events"]
    assert known["times_found"] == 0
    assert known["barrier_eV"] == pytest.approx(found["events"][0]["barrier_eV"], abs=1e-3)
    assert known["multiplicity"] == 12
    assert few["discovery"]["confidence"] == 0.0
    first = next(
        line["search"]
        for line in map(json.loads, (folder / "events/search/searches.jsonl").open())
        if line["saddle"] is not None
    )
    more = discover(structure, given, tmp_path / "new", seed=3, searches=first)
    assert more["events"][0]["times_found"] == 1
    assert len(json.loads((tmp_path / "new/search/given.json").read_text())["minima"]) == 1


def test_a_shallow_minimum_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this potential the vacancy of iron passes a minimum halfway. By its symmetry it goes on.

    Without the symmetry the event would end there, and the reverse event would have two copies.
    """
    given = vacancy.write(tmp_path, vacancy.SYSTEM)
    words = {"seed": 1, "confidence": 0.5}
    found = discover(tmp_path / "initial.xyz", given, tmp_path / "events", **words)  # type: ignore[arg-type]
    (event,) = found["events"]
    assert (event["multiplicity"], event["reverse_multiplicity"], event["final_site"]) == (8, 8, 0)
    initial, final, passed = (
        read_structure(tmp_path / "events" / "Fe-event-1" / f"{name}.xyz")
        for name in ("initial", "final", "passed")
    )
    far = np.linalg.norm(final.positions - initial.positions, axis=1)
    assert far.max() == pytest.approx(event["length_A"], abs=1e-3)
    assert event["length_A"] == pytest.approx(2.8553 * 0.75**0.5, rel=0.1)
    half = np.linalg.norm(passed.positions - initial.positions, axis=1)[far.argmax()]
    assert half == pytest.approx(0.5 * far.max(), rel=0.02)
    passes = event["passes"]
    assert passes["depth_eV"] == pytest.approx(event["barrier_eV"] - passes["energy_eV"])
    assert 0 < passes["depth_eV"] < notebook.SHALLOW * event["barrier_eV"]
    settings = input_file.load(tmp_path / "events" / event["input"])
    with sampling.open_engine(settings, initial) as engine:
        energies = [engine.evaluate(each.positions, cell_of(each))[0] for each in (initial, final)]
    assert energies[1] == pytest.approx(energies[0], abs=1e-4)

    monkeypatch.setattr(notebook, "SHALLOW", 0.0)
    found = discover(tmp_path / "initial.xyz", given, tmp_path / "events", **words)  # type: ignore[arg-type]
    (event,) = found["events"]
    assert (event["multiplicity"], event["reverse_multiplicity"], event["final_site"]) == (8, 2, 1)
    assert event["energy_eV"] == pytest.approx(passes["energy_eV"])


def test_the_page_has_the_numbers_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    script.show(json.loads(script.DATA.read_text(encoding="utf-8")))
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    page = (pages.DOCS / "discover.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 12
    assert [line for line in printed if line not in page] == []


def test_the_page_has_the_times_of_several_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    searches.show(json.loads((pages.DOCS / "searches.json").read_text(encoding="utf-8")))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (pages.DOCS / "discover.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) == 4
    assert [line for line in printed if line not in page] == []


def test_what_is_refused(tmp_path: Path) -> None:
    structure, given = write_case(tmp_path)
    with pytest.raises(UserError, match=r"--around 99: the atoms have the numbers 1 to 31"):
        discover(structure, given, tmp_path / "new", around=[99])
    with pytest.raises(UserError, match="none/new: its folder does not exist; make it first"):
        discover(structure, given, tmp_path / "none" / "new")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="already exists and has no searches"):
        discover(structure, given, tmp_path / "there")
    molecule("H2O").write(tmp_path / "water.xyz")
    with pytest.raises(UserError, match="is not periodic"):
        discover(tmp_path / "water.xyz", given, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    bulk("Cu", "fcc", a=A_CU, cubic=True).repeat(2).write(tmp_path / "perfect.xyz")
    with pytest.raises(UserError, match=r"perfect.xyz: all atoms .* same surroundings.*--around"):
        discover(tmp_path / "perfect.xyz", given, tmp_path / "perfect")
    with pytest.raises(UserError, match=r"1 searches found no event below 0.01 eV"):
        discover(
            structure, given, tmp_path / "low", searches=1, max_barrier_eV=0.01, around=[9],
            radius_A=2.0,
        )  # fmt: skip
    (line,) = (tmp_path / "low" / "search" / "searches.jsonl").read_text().splitlines()
    assert json.loads(line)["atom"] == 9  # no other atom is so near
    (tmp_path / "low" / "search" / "searches.jsonl").write_text(line[:20] + "\n")
    with pytest.raises(UserError, match=r"searches.jsonl: is damaged .*; remove .*search\."):
        discover(structure, given, tmp_path / "low", around=[9], radius_A=2.0)


def test_only_events_that_cannot_be_counted_are_refused(tmp_path: Path) -> None:
    """Held atoms are almost where the symmetry would have them, but not within the tolerance."""
    structure, given = write_case(tmp_path)
    atoms = copper_vacancy()
    far = np.linalg.norm(find_mic(atoms.positions, atoms.cell)[0], axis=1) > 3.0
    atoms.positions[far] += 0.02 * np.sin(np.outer(np.flatnonzero(far), [1.0, 2.0, 3.0]))
    atoms.set_constraint(FixAtoms(np.flatnonzero(far)))
    atoms.write(structure)
    with pytest.raises(UserError, match=r"cu.xyz: no event can be used: .* depends on the toler"):
        discover(structure, given, tmp_path / "new", seed=3, searches=2)


@pytest.mark.slow
def test_a_calculator_that_fails_in_every_search(tmp_path: Path) -> None:
    """Its forces are known as long as the atoms stay near the minimum."""
    structure, given = write_case(tmp_path)
    (tmp_path / "near.py").write_text(NEAR)
    text = EMT_INPUT.replace("ase.calculators.emt.EMT", "near.Near")
    given.write_text(text.replace("0.01", "0.05"))
    with pytest.raises(UserError, match=r"10 searches in a row failed: error: .*too far"):
        discover(structure, given, tmp_path / "new", around=[9], radius_A=2.0)


NEAR = """
import numpy as np
from ase.calculators.emt import EMT

class Near(EMT):
    first = None

    def calculate(self, atoms=None, *args):
        if self.first is None:
            self.first = atoms.positions.copy()
        if np.abs(atoms.positions - self.first).max() > 0.2:
            raise ValueError("an atom is too far from the minimum")
        super().calculate(atoms, *args)
"""


def test_the_command(of_copper: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A command in a complete folder continues it and prints the same events."""
    folder, found = of_copper
    shutil.copytree(folder, tmp_path / "again")
    at = tmp_path / "again"
    options = ("-i", at / "cu.toml", "-o", at / "events", "--seed", "3", "--confidence", ENOUGH)
    done = vacancy.called("discover", at / "cu.xyz", *map(str, options))
    assert done.returncode == 0, done.stderr
    assert f"Cu-event-1  {found['events'][0]['barrier_eV']:.4f}" in done.stdout
    assert "Confidence that no event below" in done.stdout
    as_json = vacancy.called("discover", at / "cu.xyz", *map(str, options), "--json")
    assert json.loads(as_json.stdout)["events"] == json.loads(json.dumps(found["events"]))
    wrong = vacancy.called("discover", at / "cu.xyz", *map(str, options), "--confidence", "1.5")
    assert wrong.returncode == 1
    assert "--confidence 1.5" in wrong.stderr
