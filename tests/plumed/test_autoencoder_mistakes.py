"""What AUTOENCODER refuses: damaged model files, wrong keywords, other cells."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import plumed
import pytest
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from tests.plumed.autoencoder import NO_CELL, TRICLINIC, step, write_model
from tests.plumed.babf import Array, MakePlumed, sentence


def truncated(path: Path) -> None:
    write_model(path)
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path) -> None:
    path.write_text("ATOMS=1-10", encoding="utf-8")


def foreign(path: Path) -> None:
    save_file({"weight": np.zeros(3)}, path, {"format": "pt"})


MISTAKES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "missing file": (lambda path: None, "", "the model file does not exist"),
    "folder": (lambda path: path.mkdir(), "", "cannot be read as a file"),
    "truncated": (truncated, "", "is truncated"),
    "text file": (text, "", "not a safetensors file"),
    "empty file": (lambda path: path.touch(), "", "not a safetensors file"),
    "foreign model": (foreign, "", "not a model file of plumed_cv"),
    "later version": (lambda p: write_model(p, format_version="2"), "", "format version 2"),
    "unit": (lambda p: write_model(p, length_unit="nm"), "", "lengths in nm"),
    "activation": (lambda p: write_model(p, activation="gelu"), "", "unknown activation gelu"),
    "NaN": (lambda p: write_model(p, pca_mean=np.full(15, np.nan)), "", "not finite"),
    "species": (lambda p: write_model(p, species='["Fe"]'), "", "species of its 5 atoms"),
    "tampered weight": (
        lambda p: write_model(p, encoder__0__bias=np.zeros(4)),
        "",
        "does not give its own check values",
    ),
    "tampered check": (lambda p: write_model(p, check_value=np.ones(1)), "", "check values"),
    "wrong shape": (lambda p: write_model(p, latent_shift=np.ones(2)), "", "latent_shift"),
    "atom count": (write_model, "ATOMS=1-4", "has 5 atoms and ATOMS lists 4"),
    "atom twice": (write_model, "ATOMS=1-4,2", "lists atom 2 twice"),
    "atom out of range": (write_model, "ATOMS=1-4,9", "out of range"),
    "unknown keyword": (write_model, "STRIDE=1", "STRIDE"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence(
    make_plumed: MakePlumed, tmp_path: Path, mistake: str
) -> None:
    prepare, keywords, message = MISTAKES[mistake]
    path = tmp_path / "cv.safetensors"
    prepare(path)
    handle = make_plumed(5)
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"ae: AUTOENCODER MODEL={path} {keywords}")
    assert message in sentence(caught.value)
    handle.finalize()


def test_model_is_compulsory_and_natural_units_are_refused(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    handle = make_plumed(5)
    with pytest.raises(plumed.PlumedError, match="MODEL is compulsory"):
        handle.cmd("readInputLine", "ae: AUTOENCODER")
    handle.finalize()
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, units="UNITS NATURAL")
    with pytest.raises(plumed.PlumedError, match="UNITS NATURAL cannot be used"):
        handle.cmd("readInputLine", f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors")
    handle.finalize()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (NO_CELL, "the engine gives no cell"),
        (np.diag([9.0, 8.0, 0.0]), "the engine gives no cell"),
        (2 * TRICLINIC, "differs from the model's by more than 25 %"),
        (0.1 * TRICLINIC, "differs from the model's by more than 25 %"),
        (TRICLINIC[[1, 0, 2]], "differs from the model's by more than 25 %"),
    ],
    ids=["none", "flat", "supercell", "unit", "order"],
)
def test_other_cells(make_plumed: MakePlumed, tmp_path: Path, cell: Array, message: str) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.zeros((5, 3)), cell)
    assert message in sentence(caught.value)
    handle.finalize()


def test_a_flip_of_the_cell_is_refused(make_plumed: MakePlumed, tmp_path: Path) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    step(handle, 0, np.zeros((5, 3)), TRICLINIC)
    flipped = TRICLINIC - np.outer([0, 1, 0], TRICLINIC[0])
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 1, np.zeros((5, 3)), flipped)
    assert "differs from the model's by more than 25 %" in sentence(caught.value)
    handle.finalize()


def test_a_rotation_of_the_cell_is_refused(make_plumed: MakePlumed, tmp_path: Path) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    turn = Rotation.from_rotvec([0.0, 0.0, 0.05]).as_matrix()
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.zeros((5, 3)), TRICLINIC @ turn)
    assert "is rotated" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize(("mass", "warned"), [(55.845, False), (57.0, False), (63.5, True)])
def test_masses_of_other_elements_are_reported(
    make_plumed: MakePlumed, tmp_path: Path, mass: float, warned: bool
) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    masses = np.full(5, 55.845)
    masses[3] = mass
    step(handle, 0, np.zeros((5, 3)), TRICLINIC, masses)
    handle.finalize()
    log = (tmp_path / "plumed.log").read_text(encoding="utf-8")
    assert ("atom 4 is Fe in the model and has a mass of 63.5" in log) == warned
