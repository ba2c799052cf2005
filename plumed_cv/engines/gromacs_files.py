"""Files of GROMACS: run parameters (.mdp) and trajectories (.trr).

Units are angstrom, fs and eV here, and nm, ps and kJ/mol in the files. N atoms.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from ase import units
from ase.cell import Cell
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.engines.segments import Segment, State
from plumed_cv.structures.frame import Array

KJ_MOL = float(units.kJ / units.mol)  # eV

_NM = 10.0  # angstrom
_NM_PER_PS = 0.01  # angstrom/fs

_TRR_MAGIC = 1993
_LARGEST_SEED = 2**31 - 2
_LOG_STRIDE = 1000

# Parameters that a run sets, without '-' and '_', in small letters. Names that begin with the last
# ones also belong to thermostats, barostats and velocities.
_OURS = {
    *("integrator", "dt", "nsteps", "tinit", "initstep", "simulationpart", "continuation"),
    *("bdfric", "ldseed", "tcoupl", "tcgrps", "taut", "reft", "nsttcouple", "nstlog", "nstenergy"),
    *("nstxout", "nstvout", "nstfout", "nstxoutcompressed", "compressedxgrps", "nstcalcenergy"),
}
_OUR_PREFIXES = ("gen", "pcoupl", "nstpcouple", "annealing", "ensembletemperature")

# A run of zero steps. A list of neighbours for one step, at any temperature, needs no buffer, for
# which a small cell would have no room.
SINGLE: dict[str, object] = {
    **{"integrator": "sd", "tcgrps": "System", "taut": 1, "reft": 1, "nstlist": 1, "nsteps": 0},
    **{"nstfout": 1, "nstenergy": 1, "nstcalcenergy": 1, "genvel": "no", "continuation": "yes"},
}


def read_mdp(path: Path) -> dict[str, str]:
    """Read the user's parameters, without those that a run sets."""
    parameters = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition(";")[0].partition("=")
        key = re.sub("[-_]", "", key.strip().lower())  # GROMACS compares keys in this way
        if equals and key not in _OURS and not key.startswith(_OUR_PREFIXES):
            parameters[key] = value.strip()
    return parameters


def write_mdp(path: Path, parameters: Mapping[str, object]) -> None:
    """Write run parameters."""
    path.write_text("".join(f"{key} = {value}\n" for key, value in parameters.items()))


def constrained_atoms(dump: str) -> NDArray[np.int64]:
    """Atoms, from 0, that constraints bind to others, from what `gmx dump -s` prints of a .tpr."""
    sizes: dict[int, int] = {}
    bound: dict[int, set[int]] = {}
    for part in re.split(r"\n +moltype \((?=\d+\))", dump)[1:]:
        kind = int(part.partition(")")[0])
        sizes[kind] = len(re.findall(r"atom\[ *\d+\]=\{.*atomnumber=", part))
        groups = re.findall(r"\((?:CONSTR|CONSTRNC|SETTLE)\)((?: +\d+)+)", part)
        bound[kind] = {int(number) for group in groups for number in group.split()}
    atoms: list[int] = []
    first = 0
    for kind, count in re.findall(r"moltype += (\d+) \".*\"\s+#molecules += (\d+)", dump):
        for _ in range(int(count)):
            atoms += [first + atom for atom in sorted(bound[int(kind)])]
            first += sizes[int(kind)]
    return np.array(atoms, dtype=np.int64)


def mdp_of(segment: Segment, draws: bool) -> dict[str, object]:
    """Run parameters of a segment that draws velocities, or continues with those of a frame."""
    dynamics = segment.dynamics
    if dynamics.thermostat == "none":
        raise UserError(
            "thermostat = 'none': dynamics at constant energy is not available with GROMACS; "
            "use 'langevin'"
        )
    thermal, noise = np.random.SeedSequence(segment.seed).generate_state(2) % _LARGEST_SEED + 1
    return {
        "integrator": "sd" if dynamics.thermostat == "langevin" else "bd",
        "dt": dynamics.timestep_fs / 1000,
        "nsteps": segment.n_steps,
        "initstep": segment.first_step,
        "tcgrps": "System",
        "taut": 1 / dynamics.friction_per_ps,
        "reft": dynamics.temperature_K,
        "bdfric": 0,  # the friction is then mass / tau-t, atom by atom
        "ldseed": noise,
        "genvel": "yes" if draws else "no",
        "gentemp": dynamics.temperature_K,
        "genseed": thermal,
        "continuation": "no" if draws else "yes",
        "nstxout": segment.snapshot_stride,
        "nstlog": _LOG_STRIDE,
        "nstenergy": _LOG_STRIDE,
    }


def write_trr(path: Path, state: State) -> None:
    """Write a frame in double precision, for a GROMACS of any precision."""
    name = b"GMX_trn_file"
    parts = [state.cell / _NM, state.positions / _NM]
    if state.velocities is not None:
        parts.append(state.velocities / _NM_PER_PS)
    sizes = [0, 0, parts[0].nbytes, 0, 0, 0, 0, parts[1].nbytes, 0, 0, len(parts[1]), 0, 0]
    sizes[8] = sum(part.nbytes for part in parts[2:])
    header = np.array([_TRR_MAGIC, len(name) + 1, len(name)], ">i4").tobytes() + name
    numbers = np.concatenate([np.zeros(2), *(part.ravel() for part in parts)])  # time, lambda, ...
    path.write_bytes(header + np.array(sizes, ">i4").tobytes() + numbers.astype(">f8").tobytes())


def read_trr(path: Path) -> dict[str, Array]:
    """Positions x, velocities v and forces f of the first frame, if present, shape (N, 3) each.

    mdtraj's reader reads no velocities and no forces, and only single precision.
    """
    data = path.read_bytes()
    at = 12 + int.from_bytes(data[8:12])  # magic number, and the name with its two lengths
    header = np.frombuffer(data, ">i4", 13, at).tolist()
    sizes = dict(
        zip(("box", "vir", "pres", "top", "sym", "x", "v", "f"), header[2:10], strict=True)
    )
    n_atoms = header[10]
    width = max(sizes["x"], sizes["v"], sizes["f"]) // (3 * n_atoms)
    at += 13 * 4 + 2 * width + header[0] + header[1]  # time and lambda; obsolete parts
    units_of = {"x": _NM, "v": _NM_PER_PS, "f": KJ_MOL / _NM}
    found = {}
    for name, size in sizes.items():
        if size and name in units_of:
            values = np.frombuffer(data, f">f{width}", 3 * n_atoms, at)
            found[name] = values.astype(np.float64).reshape(n_atoms, 3) * units_of[name]
        at += size
    return found


def trr_to_dcd(target: Path, trr: Path, start: State, steps: tuple[int, int]) -> Array | None:
    """Write frames of a .trr as a DCD file without periodic jumps.

    Parameters
    ----------
    target, trr
        The new file, and the file to read, whose last frame may be incomplete.
    start
        Positions before the first frame, and the cell.
    steps
        The frames after the first of these steps, up to the second one.

    Returns
    -------
    Array or None     Positions of the last frame, shape (N, 3), angstrom. None, and no file, if
    there is none.
    """
    if not trr.is_file() or trr.stat().st_size == 0:
        return None
    positions, numbers = _read_frames(trr)
    frames = positions[(numbers > steps[0]) & (numbers <= steps[1])] * _NM
    if len(frames) == 0:
        return None
    frames = unwrap(np.concatenate([start.positions[None], frames]), start.cell)
    cell = Cell(start.cell)
    shape = (len(frames) - 1, 3)
    with require("mdtraj").formats.DCDTrajectoryFile(str(target), "w") as file:
        file.write(
            frames[1:].astype(np.float32),
            cell_lengths=np.broadcast_to(cell.lengths(), shape),
            cell_angles=np.broadcast_to(cell.angles(), shape),
        )
    last: Array = frames[-1]
    return last


def unwrap(frames: Array, cell: Array) -> Array:
    """Frames in which no atom jumps by a lattice vector after the first frame.

    Parameters
    ----------
    frames
        Positions, shape (K, N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom.
    """
    jumps = np.round(np.diff(frames, axis=0) @ np.linalg.inv(cell))
    unwrapped = frames.copy()
    unwrapped[1:] -= np.cumsum(jumps, axis=0) @ cell
    return unwrapped


def _read_frames(trr: Path) -> tuple[Array, NDArray[np.int_]]:
    """Positions in nm, shape (K, N, 3), and steps of complete frames; a run may have been killed.

    The reader detects an incomplete last frame when it reads it.
    """
    formats = require("mdtraj").formats
    try:
        with formats.TRRTrajectoryFile(str(trr)) as file:
            frames = [file.read()]
    except OSError:
        return np.zeros((0, 1, 3)), np.zeros(0, dtype=int)
    except RuntimeError:
        frames = []
        with formats.TRRTrajectoryFile(str(trr)) as file, suppress(RuntimeError):
            while True:
                frames.append(file.read(n_frames=1))
    if not frames:
        return np.zeros((0, 1, 3)), np.zeros(0, dtype=int)
    return np.concatenate([f[0] for f in frames]), np.concatenate([f[2] for f in frames])
