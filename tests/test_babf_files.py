"""State and profile files of the reference estimator: every bit, units, damage."""

import re
from pathlib import Path

import numpy as np
import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    estimate_profile,
    read_fes,
    read_last_step,
    read_state,
    write_fes,
    write_state,
)
from tests.frozen import KT, WIDE, Frozen, double_well


def test_state_file_returns_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    estimator = Estimator(
        Grid(-0.1, 1.1, 30), KT, ramp=7, prior=rng.normal(size=31), argument="ae.node-0"
    )
    for xi in rng.normal(0.5, 0.4, size=100):
        estimator.learn(xi)
    write_state(tmp_path / "state", estimator.state)
    back = read_state(tmp_path / "state")
    np.testing.assert_array_equal(back.sums, estimator.state.sums)
    np.testing.assert_array_equal(back.prior, estimator.state.prior)
    for name in ("argument", "grid", "kT_eV", "kappa_eV", "tau", "ramp", "steps"):
        assert getattr(back, name) == getattr(estimator.state, name)
    resumed = Estimator.from_state(back)
    assert resumed.learn(0.3).bias_eV == estimator.learn(0.3).bias_eV


def test_last_step_of_a_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, Estimator(Grid(0.0, 1.0, 10), KT).state)
    assert read_last_step(path) is None  # no engine has made it
    text = re.sub("#! SET checksum .*\n", "", path.read_text())
    whole = text.replace("#! SET steps", "#! SET md_step 400\n#! SET steps")
    path.write_text(whole)
    assert read_last_step(path) == 400
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(UserError):
            read_last_step(path)
    path.write_text(whole.replace("md_step 400", "md_step 0.5"))
    with pytest.raises(UserError, match="not a number of steps"):
        read_last_step(path)


def test_state_file_in_another_energy_unit(tmp_path: Path) -> None:
    estimator = Estimator(Grid(0.0, 1.0, 10), KT)
    estimator.learn(0.2)
    path = tmp_path / "state"
    write_state(path, estimator.state)
    as_eV = read_state(path)
    text = re.sub("#! SET checksum .*\n", "", path.read_text())  # what is changed is meant
    path.write_text(text.replace("energy_unit eV", "energy_unit kj/mol"))
    as_kj = read_state(path)
    assert as_kj.kT_eV == pytest.approx(as_eV.kT_eV / 96.485, rel=1e-5)
    np.testing.assert_allclose(as_kj.sums[1], as_eV.sums[1] / 96.485, rtol=1e-5)
    np.testing.assert_array_equal(as_kj.sums[2], as_eV.sums[2])
    path.write_text(text.replace("energy_unit eV", "energy_unit 96.48530749925792"))
    assert read_state(path).kT_eV == pytest.approx(KT, rel=1e-5)
    path.write_text(text.replace("energy_unit eV", "energy_unit natural"))
    natural = read_state(path)
    assert (natural.energy_unit, natural.kT_eV) == ("natural", KT)
    with pytest.raises(UserError, match="differ in energy_unit"):
        natural + as_eV
    path.write_text(text.replace("energy_unit eV", "energy_unit erg"))
    with pytest.raises(UserError, match="energy_unit=erg is none of eV, kj/mol, "):
        read_state(path)


def test_damaged_state_files(tmp_path: Path) -> None:
    estimator = Estimator(Grid(0.0, 1.0, 10), KT)
    for xi in np.linspace(0, 1, 30):
        estimator.learn(xi)
    path = tmp_path / "state"
    write_state(path, estimator.state)
    text = path.read_text()
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(UserError):
            read_state(path)
    last = text.splitlines()[-1]
    for bad, message in [
        ("NAN", "damaged"),
        ("inf", "damaged"),
        ("-3", "damaged"),
        ("x", "row of"),
    ]:
        words = last.split()
        words[1] = bad
        path.write_text(text.replace(last, " " + " ".join(words)))
        with pytest.raises(UserError, match=message):
            read_state(path)
    path.write_text(text + "#! FIELDS time x\n 0 1\n")
    with pytest.raises(UserError, match="other columns"):
        read_state(path)
    path.write_text("#! FIELDS time x\n 0 1\n")
    with pytest.raises(UserError, match="action"):
        read_state(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_state(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "absent")


def test_damaged_tables(tmp_path: Path) -> None:
    """Files without a checksum, which shows every other change."""
    file = tmp_path / "babf.state"
    estimator = Estimator(Grid(0.0, 1.0, 10), KT)
    estimator.learn(0.5)
    write_state(file, estimator.state)
    whole = re.sub(r"#! SET checksum .*\n", "", file.read_text())
    rows = whole.splitlines(keepends=True)
    bins = re.search(r"#! SET (nbins_\S+)", whole)
    assert bins is not None
    for text, sentence in (
        ("".join(rows[:-1]), "has 10 rows of .* where 11 rows of .* belong"),
        (re.sub(r"#! SET kT .*\n", "", whole), "its header has no '#! SET kT'"),
        (re.sub(r"(#! SET kT) .*", r"\1 warm", whole), "kT=warm is not a number; "),
        (whole.replace(f"{bins[0]} 10", f"{bins[0]} 1"), "has a grid of 1 bins from 0.0 to 1.0"),
        (whole.replace("format_version 1", "format_version 2"), "in format version 1"),
        (whole + "\x01\n", "contains bytes that are not text"),
        (whole + " 0 1\n", f"line {len(rows) + 1} has 2 numbers for the 11 names"),
    ):
        assert text != whole
        file.write_text(text)
        with pytest.raises(UserError, match=sentence) as caught:
            read_state(file)
        assert str(caught.value).startswith(f"{file}: ")


def test_profile_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    system = Frozen(WIDE, double_well(5.0), double_well(5.0))
    found = estimate_profile([system.state(system.sample(rng, 300)) for _ in range(6)])
    path = tmp_path / "fes.dat"
    write_fes(path, found)
    back = read_fes(path)
    for name in ("xi", "A_k", "A", "A_k_error", "A_error", "count"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    assert (back.barrier, back.delta_F, back.kT_eV) == (found.barrier, found.delta_F, found.kT_eV)
    table = np.loadtxt(path)
    np.testing.assert_array_equal(table[:, 2], found.A)
    path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(UserError, match="not a complete profile"):
        read_fes(path)
