"""Campaigns: each event in its own process, one table, and failures."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ase import units
from ase.build import bulk

from plumed_cv import input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Callback
from plumed_cv.events import find_jumps, read_catalogue
from plumed_cv.setup.tools import n_cores
from plumed_cv.workflow import provenance
from plumed_cv.workflow.campaign import write_rates
from python.benchmarks.campaign import copy_event, kill, show
from python.drills import runs
from tests import pages, vacancy
from tests.test_jumps import EMT_INPUT, copper

INPUT = EMT_INPUT.replace("images = 7", "images = 5").replace("0.01", "0.02")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vacancy in copper."""
    folder = tmp_path_factory.mktemp("copper")
    copper().write(folder / "cu.cif")
    (folder / "cu.toml").write_text(INPUT)
    find_jumps(
        folder / "cu.cif",
        folder / "cu.toml",
        folder / "cat",
        species="Cu",
        width_A=7.0,
    )
    shutil.copytree(folder / "cat", folder / "new")
    return folder / "cat"


@pytest.fixture
def of_copper(original: Path, tmp_path: Path) -> Path:
    """The catalogue before any run."""
    return Path(shutil.copytree(original.parent / "new", tmp_path / "cat"))


@pytest.fixture(scope="module")
def done(original: Path) -> dict[str, Any]:
    return workflow.run_campaign(original, harmonic=True)


def test_harmonic_campaign_and_diffusion(original: Path, done: dict[str, Any]) -> None:
    assert done["failures"] == []
    with (original / "rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("event", "temperature_K", "rate_per_s", "error_factor", "transmission", "multiplicity"),
        *("flux_barrier_eV", "source"),
    ]
    assert [(row["event"], row["temperature_K"], row["source"]) for row in rows] == [
        ("Cu-vacancy-1", "500.0", "harmonic"),
        ("Cu-vacancy-1", "700.0", "harmonic"),
    ]
    found = json.loads((original / "Cu-vacancy-1" / "harmonic" / "harmonic.json").read_text())
    for row, kelvin in zip(rows, (500.0, 700.0), strict=True):
        rate = found["prefactor_per_s"] * np.exp(-found["barrier_eV"] / (units.kB * kelvin))
        assert float(row["rate_per_s"]) == pytest.approx(rate)
        assert row["multiplicity"] == "12"
    diffusion = workflow.compute_diffusion(original, formation=workflow.read_formation("1.0"))
    length = read_catalogue(original).events[0].jump.length_A
    first = diffusion["temperatures"][0]
    expected = 12 / 6 * length**2 * 1e-20 * float(rows[0]["rate_per_s"])
    assert first["D_m2_per_s"] == pytest.approx(expected)
    assert first["correlation_factor"] == pytest.approx(0.781451, abs=3e-6)
    assert diffusion["fit"]["activation_energy_eV"] == pytest.approx(found["barrier_eV"], abs=1e-6)


def test_a_campaign_that_is_done_changes_nothing(original: Path, done: dict[str, Any]) -> None:
    before = (original / "rates.csv").read_bytes()
    hessians = {file: file.stat().st_mtime for file in original.rglob("hessian-*.npz")}
    assert hessians
    assert workflow.run_campaign(original, harmonic=True) == done
    assert (original / "rates.csv").read_bytes() == before
    assert {file: file.stat().st_mtime for file in original.rglob("hessian-*.npz")} == hessians


def test_rates_of_another_input_are_not_kept(
    original: Path, done: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the command nor the table contains the event."""
    folder = Path(shutil.copytree(original, tmp_path / "cat"))
    file = folder / "Cu-vacancy-1" / "input.toml"
    assert workflow.run_campaign(folder, harmonic=True)["rates"] == done["rates"]
    file.write_text(file.read_text().replace("images = 5", "images = 7"))
    found = workflow.run_campaign(folder, harmonic=True)
    assert found["rates"] == []
    (failure,) = found["failures"]
    assert "was started with another path.images: 5, and now it is 7" in failure["reason"]
    assert write_rates(read_catalogue(folder), {}) == found


def test_an_event_goes_over_all_equal_saddle_points(
    original: Path, done: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "cat"))
    file = folder / "Cu-vacancy-1" / "harmonic" / "harmonic.json"
    found = json.loads(file.read_text())
    assert found["equal_saddle_points"] == 1
    file.write_text(json.dumps(found | {"equal_saddle_points": 2, "other_maxima": 1}))
    for twice, once in zip(
        write_rates(read_catalogue(folder), {})["rates"], done["rates"], strict=True
    ):
        assert twice["rate_per_s"] == 2 * once["rate_per_s"]
        assert once["rate_note"] is None
        assert "1 more maximum of nearly the same height" in twice["rate_note"]
    (note, _) = workflow.compute_diffusion(folder)["notes"]
    assert "500 K: the rate of Cu-vacancy-1: the path has 1 more maximum" in note


def test_the_way_back_of_a_symmetric_jump(original: Path, done: dict[str, Any]) -> None:
    """The reverse event has the same rate; the other minimum has its own Hessian."""
    event, output = original / "Cu-vacancy-1", original.parent / "back"
    arguments = ("harmonic", event / "input.toml", "-o", output, "--reverse")
    assert vacancy.called(*arguments).returncode == 0
    found = json.loads((output / "harmonic.json").read_text())
    assert len(list(output.rglob("hessian-minimum-*.npz"))) >= 2
    assert found["reverse"]["barrier_eV"] == pytest.approx(found["barrier_eV"], abs=1e-6)
    for there, back in zip(found["rates"], found["reverse"]["rates"], strict=True):
        assert back["temperature_K"] == there["temperature_K"]
        assert back["rate_per_s"] == pytest.approx(there["rate_per_s"], rel=1e-4)


def with_another(folder: Path) -> Path:
    """Add an event of the same kind whose input names a calculator that does not exist."""
    content = json.loads((folder / "catalogue.json").read_text())
    second = {**content["events"][0], "id": "Cu-vacancy-2"}
    content["events"].append(second)
    (folder / "catalogue.json").write_text(json.dumps(content))
    shutil.copytree(folder / "Cu-vacancy-1", folder / "Cu-vacancy-2")
    broken = folder / "Cu-vacancy-1" / "input.toml"
    broken.write_text(broken.read_text().replace("emt.EMT", "emt.NoSuchCalculator"))
    return folder


def test_an_event_that_fails_is_set_aside(of_copper: Path) -> None:
    done = vacancy.called("campaign", with_another(of_copper), "--harmonic")
    assert done.returncode == 1
    assert "Set aside: Cu-vacancy-1: " in done.stdout
    assert "NoSuchCalculator" in done.stdout
    found = json.loads((of_copper / "rates.json").read_text())
    assert {row["event"] for row in found["rates"]} == {"Cu-vacancy-2"}
    (failure,) = found["failures"]
    assert failure["event"] == "Cu-vacancy-1"
    assert "Traceback" not in failure["reason"]
    with pytest.raises(
        UserError, match=r"500 K is left out: no rate with an error of Cu-vacancy-1"
    ):
        workflow.compute_diffusion(of_copper)


def test_a_campaign_begins_with_what_is_missing(
    original: Path, done: dict[str, Any], tmp_path: Path
) -> None:
    """Of two events, the first one has its rates already."""
    folder = Path(shutil.copytree(original, tmp_path / "cat"))
    copy_event(folder, 2)
    shutil.rmtree(folder / "Cu-vacancy-2" / "harmonic")
    ended: list[str] = []
    found = workflow.run_campaign(
        folder,
        harmonic=True,
        reporter=Callback(lambda name, done, total, note: ended.append(note)),
    )
    assert ended == ["", "Cu-vacancy-2", "Cu-vacancy-1"]  # the task begins without a note
    assert found["failures"] == []
    assert [row["event"] for row in found["rates"]] == 2 * ["Cu-vacancy-1"] + 2 * ["Cu-vacancy-2"]


@pytest.mark.slow
def test_the_benchmark_kills_and_compares(
    original: Path, done: dict[str, Any], of_copper: Path
) -> None:
    expected = (original / "rates.csv").read_bytes()
    found = kill(of_copper, 1, 2, 5.0, expected)
    assert found["same"]
    assert found["kills"] == len(found["done"]) > 0
    assert not kill(of_copper, 1, 0, 5.0, expected.replace(b"12", b"13"))["same"]


def test_the_page_has_the_numbers_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    show(json.loads((pages.DOCS / "campaigns.json").read_text(encoding="utf-8")))
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    page = (pages.DOCS / "diffusion.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 5
    assert [line for line in printed if line not in page] == []


def started(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "plumed_cv.cli", "campaign", str(folder), "--harmonic"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def at_work(folder: Path, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Wait until the event computes a Hessian; return all processes below the campaign."""
    deadline = time.monotonic() + 600
    while not list(folder.rglob("*hessian*")):
        assert process.poll() is None, "the campaign ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return below


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_campaign_that_was_ended_goes_on(
    how: signal.Signals, of_copper: Path, done: dict[str, Any]
) -> None:
    process = started(of_copper)
    below = at_work(of_copper, process)
    assert below
    process.send_signal(how)
    process.wait(timeout=120)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive  # nothing goes on in secret
    again = workflow.run_campaign(of_copper, harmonic=True)
    assert again["failures"] == []
    for row, other in zip(again["rates"], done["rates"], strict=True):
        assert row["rate_per_s"] == pytest.approx(other["rate_per_s"], rel=1e-6)


@pytest.mark.slow
def test_two_campaigns_in_one_catalogue(of_copper: Path) -> None:
    process = started(of_copper)
    try:
        at_work(of_copper, process)
        with pytest.raises(UserError, match="another campaign is at work"):
            workflow.run_campaign(of_copper, harmonic=True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


@pytest.mark.slow
def test_an_event_whose_process_is_killed(of_copper: Path) -> None:
    process = started(of_copper)
    below = at_work(of_copper, process)
    child = next(each for each in below if "plumed_cv.cli" in " ".join(each.cmdline()))
    child.kill()
    assert process.wait(timeout=120) == 1
    (failure,) = json.loads((of_copper / "rates.json").read_text())["failures"]
    assert failure["reason"] == "its process was ended by signal 9; see harmonic.log."


@pytest.mark.slow
def test_a_dask_cluster(of_copper: Path, done: dict[str, Any]) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        found = workflow.run_campaign(of_copper, harmonic=True, scheduler=cluster.scheduler_address)
    assert found["failures"] == []
    assert len(found["rates"]) == len(done["rates"]) == 2


def test_mistakes(of_copper: Path, tmp_path: Path) -> None:
    file = of_copper / "Cu-vacancy-1" / "input.toml"
    for options, words in (
        (["--jobs", n_cores() + 1], f"and this machine has {n_cores()} cores"),
        (["--jobs", 2, "--scheduler", "x"], "the scheduler decides this"),
        (["--scheduler", tmp_path / "none.json"], "none.json: there is no such file"),
    ):
        done = vacancy.called("campaign", of_copper, *map(str, options))
        assert done.returncode == 1
        assert words in done.stderr
        assert runs.is_a_sentence(done.stderr)
    file.write_text(file.read_text().replace("[engine]", "expansion = [1e-5]\n[engine]"))
    done = vacancy.called("campaign", of_copper, "--harmonic")
    assert "the harmonic rates of an input are those of one cell" in done.stderr
    file.unlink()
    assert "does not exist" in vacancy.called("campaign", of_copper).stderr


def result(kelvin: float, **more: Any) -> dict[str, Any]:
    return {"temperature_K": kelvin, "converged": True, **more}


def test_rows_of_runs(tmp_path: Path) -> None:
    """Rates with and without transmission coefficient, and of the way back."""
    from tests.test_diffusion import catalogue, interstitials

    catalogue(tmp_path, interstitials(bulk("Cu", "fcc", a=3.6)), "interstitial")
    run = tmp_path / "e0" / "run"
    run.mkdir(parents=True)
    given = vacancy.write(tmp_path / "e0", vacancy.SYSTEM + vacancy.QUICK, "input.toml")
    kT = units.kB * 600.0
    of_600 = result(
        600.0,
        tst_rate_per_s=4e9,
        tst_rate_error_per_s=4e8,
        delta_F_eV=-2.0 * kT,
        delta_F_error_eV=0.3 * kT,
    )
    more = {
        "rate_per_s": 1e10,
        "rate_error_factor": 1.2,
        "transmission": 0.5,
        "reverse_rate_per_s": 3e9,
        "reverse_rate_error_factor": 1.3,
    }
    for content in (of_600, {**of_600, **more, "temperature_K": 800.0}):
        folder = run / f"{content['temperature_K']:g}K"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(content))
    kelvin = [600.0, 800.0, 1000.0]
    (run / "temperatures.json").write_text(json.dumps({"temperatures_K": kelvin}))
    aside = [{"temperature_K": 1000.0, "reason": "too hot"}, {"temperature_K": 600.0, "reason": ""}]
    (run / "rates.json").write_text(json.dumps({"failures": aside}))
    found = write_rates(read_catalogue(tmp_path), {"e0": "one failed"})
    cold, hot = found["rates"]
    assert (cold["source"], cold["rate_per_s"]) == ("transition state theory", 4e9)
    assert cold["reverse_rate_per_s"] == pytest.approx(4e9 * np.exp(-2.0))
    factor = np.exp(np.hypot(0.1, 0.3))
    assert cold["reverse_error_factor"] == pytest.approx(factor)
    assert (hot["source"], hot["rate_per_s"]) == ("transmission coefficient", 1e10)
    assert (hot["tst_rate_per_s"], hot["reverse_rate_per_s"]) == (4e9, 3e9)
    assert found["failures"] == [{"event": "e0", "temperature_K": 1000.0, "reason": "too hot"}]
    with (tmp_path / "rates.csv").open() as file:
        rows = [(row["event"], row["multiplicity"]) for row in csv.DictReader(file)]
    assert rows == [("e0", "8"), ("e0-reverse", "4")] * 2

    # Results of another input are not rates of this event.
    started = input_file.load(given)
    system = started.system.at(800.0)
    provenance.check_same_input(run / "800K", started.model_copy(update={"system": system}))
    assert write_rates(read_catalogue(tmp_path), {})["rates"] == found["rates"]
    given.write_text(given.read_text() + "[sampling]\nbins = 77\n")
    now = write_rates(read_catalogue(tmp_path), {})
    assert now["rates"] == [cold]
    reason = next(each["reason"] for each in now["failures"] if each["temperature_K"] == 800.0)
    assert "was started with another sampling.bins" in reason


@pytest.mark.slow
def test_a_temperature_that_fails_is_set_aside(plugin: Path, tmp_path: Path) -> None:
    """Trajectories of this length reach the other state at 300 K but not at 40 K."""
    bulk("Fe", "bcc", a=2.8553).write(tmp_path / "fe.cif")
    text = vacancy.INPUT.replace("temperature_K = 300.0", "temperature_K = [300.0, 40.0]")
    text = text.replace('initial = "initial.xyz"\nfinal = "final.xyz"\n', "")
    text = text.replace("maximum = 2", "minimum = 1\nmaximum = 1") + "[rate]\nenabled = false\n"
    (tmp_path / "fe.toml").write_text(text)
    folder = tmp_path / "cat"
    find_jumps(tmp_path / "fe.cif", tmp_path / "fe.toml", folder, species="Fe", width_A=8.0)
    done = vacancy.called("campaign", folder)
    assert done.returncode == 1, done.stderr
    found = json.loads((folder / "rates.json").read_text())
    assert [row["temperature_K"] for row in found["rates"]] == [300.0]
    (failure,) = found["failures"]
    assert (failure["event"], failure["temperature_K"]) == ("Fe-vacancy-1", 40.0)
    assert "raise sampling.steps" in failure["reason"]
    diffusion = workflow.compute_diffusion(folder)
    (row,) = diffusion["temperatures"]
    assert row["D_m2_per_s"] > 0
