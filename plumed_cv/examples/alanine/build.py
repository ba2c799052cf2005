"""Builds alanine dipeptide in vacuum: topology and the two states of its backbone, by GROMACS.

The heavy atoms come from standard bond lengths and angles and the dihedrals phi and psi; `gmx`
adds the hydrogens of the force field and relaxes both structures.
"""

import sys
import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.engines.gromacs import find_gromacs
from plumed_cv.engines.process import run_program

FORCE_FIELD = "amber99sb-ildn"
STATES = {"initial": (-80.0, 75.0), "final": (60.0, -40.0)}  # C7eq and C7ax: phi, psi (degrees)

# Atom, residue, and what it is placed by: three atoms before it, bond length (A), angle, dihedral.
CHAIN: list[tuple[str, str, tuple[str, str, str], float, float, float | str]] = [
    ("O", "ACE", ("ALA-N", "ACE-CH3", "ACE-C"), 1.23, 121.0, 180.0),
    ("CA", "ALA", ("ACE-CH3", "ACE-C", "ALA-N"), 1.46, 122.0, 180.0),
    ("C", "ALA", ("ACE-C", "ALA-N", "ALA-CA"), 1.52, 111.0, "phi"),
    ("CB", "ALA", ("ALA-C", "ALA-N", "ALA-CA"), 1.53, 110.0, -122.0),
    ("N", "NME", ("ALA-N", "ALA-CA", "ALA-C"), 1.33, 117.0, "psi"),
    ("O", "ALA", ("NME-N", "ALA-CA", "ALA-C"), 1.23, 121.0, 180.0),
    ("CH3", "NME", ("ALA-CA", "ALA-C", "NME-N"), 1.46, 122.0, 180.0),
]
ORDER = ["ACE-CH3", "ACE-C", "ACE-O", "ALA-N", "ALA-CA", "ALA-CB", "ALA-C", "ALA-O", "NME-N"]
ORDER += ["NME-CH3"]

RELAX = """
integrator = steep
emtol = 1
emstep = 0.001
nsteps = 5000
pbc = xyz
rcoulomb = 1.4
rvdw = 1.4
"""


def placed(known: dict[str, np.ndarray], phi: float, psi: float) -> dict[str, np.ndarray]:
    """Places the atoms of CHAIN one after the other."""
    for name, residue, before, length, angle, dihedral in CHAIN:
        a, b, c = (known[other] for other in before)
        turn = {"phi": phi, "psi": psi}.get(str(dihedral), dihedral)
        theta, torsion = np.radians(angle), np.radians(float(turn))
        along = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal)
        local = [-np.cos(theta), np.sin(theta) * np.cos(torsion), np.sin(theta) * np.sin(torsion)]
        axes = np.array([along, np.cross(normal, along), normal])
        known[f"{residue}-{name}"] = c + length * (np.array(local) @ axes)
    return known


def pdb(atoms: dict[str, np.ndarray]) -> str:
    """The heavy atoms as a PDB file."""
    residues = {"ACE": 1, "ALA": 2, "NME": 3}
    lines = []
    for number, label in enumerate(ORDER, start=1):
        residue, name = label.split("-")
        x, y, z = atoms[label]
        lines.append(
            f"ATOM  {number:5d}  {name:<3s} {residue} A{residues[residue]:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {name[0]:>2s}"
        )
    return "\n".join([*lines, "END", ""])


def main() -> None:
    """Write topol.top, conf.gro, initial.xyz and final.xyz."""
    command = find_gromacs().command

    def gmx(folder: Path, *arguments: str) -> None:
        code, said = run_program([*command, "-quiet", "-nobackup", *arguments], folder)
        if code != 0:
            raise UserError(f"gmx {arguments[0]} failed:\n{said.strip()}")

    start = {
        "ACE-CH3": np.array([0.0, 0.0, 0.0]),
        "ACE-C": np.array([1.52, 0.0, 0.0]),
        "ALA-N": np.array([2.15, 1.17, 0.0]),
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "relax.mdp").write_text(RELAX)
        for name, (phi, psi) in STATES.items():
            (work / "heavy.pdb").write_text(pdb(placed(dict(start), phi, psi)))
            gmx(
                work,
                *("pdb2gmx", "-f", "heavy.pdb", "-ff", FORCE_FIELD, "-water", "none"),
                *("-o", "whole.gro", "-p", "topol.top", "-i", "posre.itp"),
            )
            gmx(work, "editconf", "-f", "whole.gro", "-o", "box.gro", "-c", "-box", *["3.5"] * 3)
            gmx(
                work,
                *("grompp", "-f", "relax.mdp", "-c", "box.gro", "-p", "topol.top"),
                *("-o", "relax.tpr"),
            )
            gmx(work, "mdrun", "-deffnm", "relax", "-ntmpi", "1", "-ntomp", "1")
            lines = (work / "relax.gro").read_text().splitlines()[2:-1]
            symbols = [line[10:15].strip()[0] for line in lines]
            positions = [[10.0 * float(line[c : c + 8]) for c in (20, 28, 36)] for line in lines]
            atoms = Atoms(symbols, positions, cell=[35.0] * 3, pbc=True)
            ase.io.write(f"{name}.xyz", atoms, format="extxyz")
            if name == "initial":
                Path("conf.gro").write_text((work / "relax.gro").read_text())
                Path("topol.top").write_text((work / "topol.top").read_text())
    print(f"initial.xyz and final.xyz: {len(atoms)} atoms; conf.gro and topol.top for GROMACS")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"build.py: {error}")
