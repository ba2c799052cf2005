"""Free energy of a state by thermodynamic integration from its harmonic crystal.

The energy is mixed, U(s) = (1 - s) U_h + s U, where U is that of the potential and U_h that of the
second-order expansion at the minimum of the state. Then the free energy of the state is

    F = F_h + integral over s from 0 to 1 of <U - U_h>_s.

The integral is a Gauss-Legendre sum. There is no path, no collective variable and no bias, so the
difference of two states is independent of all that plumed_cv does. The harmonic part keeps the
atoms near their sites. Only structures count in which every atom is nearer to its site than half of
a hop. If an atom is not near its site at the end of a part of the dynamics, the next part starts
where this one did.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv.common.files import replacing
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.structures.frame import Array
from python.references.defects import Case
from python.references.hops import hop_A
from python.references.plain_dynamics import Dynamics

NODES = 7  # of the Gauss-Legendre sum
SAMPLE_STEPS = 10  # between two values of the energies
PART_PS = 2.5
EQUILIBRATION_PARTS = 2
FRICTION_PER_PS = 2.0  # of the Langevin thermostat
LEAST = 0.5  # share of structures that count, in a part that counts
BLOCKS = 10  # of the jackknife


class MixedCrystal(Dynamics):
    """LAMMPS with the mixture of a potential and the expansion of a state.

    Parameters
    ----------
    case
        Elements, cell and potential.
    state
        Expansion at the minimum of the state.
    share
        Share of the potential, s.
    temperature_K
        Of the dynamics.
    """

    def __init__(self, case: Case, state: Expansion, share: float, temperature_K: float) -> None:
        style, *lines = case.potential
        mixed = style.replace("pair_style", f"pair_style hybrid/scaled {share!r}")
        super().__init__(case, [mixed, *(_name_style(line, style.split()[1]) for line in lines)])
        self._state, self._share, self._temperature_K = state, share, temperature_K
        self._lammps.command("compute pair all pe pair")
        self._lammps.command("fix harmonic all external pf/callback 1 1")
        self._lammps.set_fix_external_callback("harmonic", self._add_harmonic, None)
        self._steps = round(PART_PS * 1000.0 / case.timestep_fs)
        self._last = state.positions
        self._limit_A = 0.5 * hop_A(case)
        self._inside: list[bool] = []

    def _displacements(self, positions: Array) -> Array:
        off = positions - self._state.positions
        off -= self.case.edge_A * np.round(off / self.case.edge_A)
        return np.asarray(off - off.mean(axis=0))

    def _add_harmonic(
        self, caller: Any, step: int, n: int, tags: Any, positions: Any, forces: Any
    ) -> None:
        """Callback of LAMMPS: the forces and the energy of the expansion, without its share."""
        order = np.argsort(tags)
        off = self._displacements(positions[order])
        if step % SAMPLE_STEPS == 0:
            self._inside.append(bool(np.linalg.norm(off, axis=1).max() < self._limit_A))
        off = off.ravel()
        pull = self._state.hessian @ off
        forces[order] = -(1.0 - self._share) * pull.reshape(-1, 3)
        self._lammps.fix_external_set_energy_global("harmonic", 0.5 * float(off @ pull))

    def restart(self, seed: int, heat: float = 1.0) -> None:
        """Place the atoms where they were last near their sites, with new velocities.

        Parameters
        ----------
        seed
            Of the velocities.
        heat
            Factor of the temperature; at the minimum two, because half of the energy becomes
            potential energy.
        """
        self._scatter("x", self._last % self.case.edge_A)
        self._lammps.command(f"velocity all create {heat * self._temperature_K} {seed} mom yes")

    def run(self, seed: int) -> float | None:
        """Make a part of the dynamics; return the mean of U - U_h, eV, or None if too few count."""
        T = self._temperature_K
        self._inside.clear()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "energies"
            for command in (
                "reset_timestep 0",
                f"fix bath all langevin {T} {T} {1.0 / FRICTION_PER_PS} {seed} zero yes",
                f"fix out all ave/time {SAMPLE_STEPS} 1 {SAMPLE_STEPS} c_pair f_harmonic "
                f"file {file}",
                f"run {self._steps} post no",
                "unfix out",
                "unfix bath",
            ):
                self._lammps.command(command)
            pair, harmonic = np.loadtxt(file, usecols=(1, 2)).T
        positions = self._gather("x")
        inside = np.array(self._inside)
        if inside[-1]:
            self._last = positions
        else:
            self.restart(seed)
        if inside.mean() < LEAST:
            return None
        found = pair / self._share - self._state.energy_eV - harmonic
        return float(np.mean(found[inside]))


def _name_style(line: str, name: str) -> str:
    """A pair_coeff line for a hybrid style, which needs the name of its own style."""
    words = line.split()
    return " ".join([*words[:3], name, *words[3:]]) if words[0] == "pair_coeff" else line


def sample_differences(
    case: Case, state: Expansion, temperature_K: float, ps: float, file: Path | None = None
) -> Array:
    """Means of U - U_h in parts of `PART_PS`.

    Parameters
    ----------
    case, state, temperature_K
        As for `MixedCrystal`.
    ps
        Length of the dynamics at each node.
    file
        Stores the parts (.npz) and is continued; if None, nothing is stored.

    Returns
    -------
    Shape (`NODES`, M), eV.
    """
    shares = 0.5 * (1.0 + np.polynomial.legendre.leggauss(NODES)[0])
    wanted = round(ps / PART_PS)
    found: dict[str, Array] = {}
    if file is not None and file.exists():
        with np.load(file) as saved:
            found = dict(saved)
    for k, share in enumerate(shares):
        parts = found.get(str(k), np.zeros(0)).tolist()
        if len(parts) >= wanted:
            continue
        crystal = MixedCrystal(case, state, float(share), temperature_K)
        waiting, seed = EQUILIBRATION_PARTS, 1 + 100_000 * k + len(parts)
        crystal.restart(seed, heat=2.0)
        while len(parts) < wanted:
            seed += 1
            value = crystal.run(seed)
            if waiting > 0:
                waiting -= 1
            elif value is not None:
                parts.append(value)
        found[str(k)] = np.array(parts)
        if file is not None:
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **found)  # type: ignore[arg-type]
    return np.array([found[str(k)][:wanted] for k in range(NODES)])


def integrate(parts: Array) -> tuple[float, float]:
    """The anharmonic free energy and its error, eV, from the parts, shape (`NODES`, M)."""
    weights = 0.5 * np.polynomial.legendre.leggauss(NODES)[1]
    blocks = np.array([block.mean(axis=1) for block in np.array_split(parts, BLOCKS, axis=1)])
    errors = blocks.std(axis=0, ddof=1) / BLOCKS**0.5
    value = float(weights @ parts.mean(axis=1))
    return value, float(np.sqrt(np.sum((weights * errors) ** 2)))
