"""Contribution of earlier iterations to the mean force: their reweighted snapshots, in a file."""

import zipfile
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from ase import Atoms, units

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy import meanforce, pooling
from plumed_cv.input_file import Config
from plumed_cv.sampling.folders import ATOMS, MEAN_FORCE
from plumed_cv.structures import cell_of
from plumed_cv.workflow.directory import RunDirectory

NAME = "earlier.npz"  # in the folder of an iteration


def pool(config: Config, files: RunDirectory, n: int, atoms: Atoms) -> None:
    """Write the contribution of earlier snapshots to iteration n, unless it exists.

    Nothing is written if an iteration has no mean force of the atoms.

    Parameters
    ----------
    config
        The input.
    files
        The run directory.
    n
        Number of the iteration, which is completely sampled.
    atoms
        All atoms of the snapshots.

    Raises
    ------
    UserError
        If a file of an earlier iteration is damaged.
    """
    target = files.iteration(n) / NAME
    blocks, mean_force = sampling.read_learned(files.iteration(n))
    if n == 1 or mean_force is None or target.exists():
        return
    variable = CollectiveVariable.load(files.cv(n - 1))
    kT_eV, cell = units.kB * config.system.temperature_K, cell_of(atoms)
    found = []
    for k in range(1, n):
        folder = files.iteration(k)
        earlier, of_earlier = sampling.read_learned(folder)
        if of_earlier is None:
            continue
        snapshots = []
        for segment in sampling.list_segments(folder):
            with sampling.remedy(segment):
                biased, _ = meanforce.read(segment / MEAN_FORCE)
                along = np.array(
                    meanforce.read_instantaneous(variable, segment / ATOMS, cell, kT_eV)
                )
            if along.shape[1] != len(biased):
                raise UserError(
                    f"{segment / ATOMS}: has {along.shape[1]} structures, and {MEAN_FORCE} beside "
                    f"it {len(biased)} lines; remove the folder {segment} and run again."
                )
            snapshots.append(pooling.Snapshots(biased, *along))
        found.append(
            pooling.reweight(
                blocks[0].grid,
                earlier,
                of_earlier,
                snapshots,
                sampling.count_segments(folder),
            )
        )
    write(
        files.iteration(n),
        reduce(add, found, freeenergy.Earlier([], [], 0)),
        len(blocks[0].grid.nodes),
    )


def read(folder: Path) -> freeenergy.Earlier | None:
    """Read the file of `pool` in the folder of an iteration; None if there is none.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        with np.load(file) as content:
            sums, walkers = content["sums"], content["walkers"]
            snapshots = int(content["snapshots"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); remove it and run again: it is then computed again."
        ) from None
    return freeenergy.Earlier(list(sums), walkers.tolist(), snapshots) if snapshots else None


def write(folder: Path, found: freeenergy.Earlier, n_nodes: int) -> None:
    """Write what `read` returns into the folder of an iteration.

    Parameters
    ----------
    folder
        The folder.
    found
        What earlier iterations add.
    n_nodes
        Number of nodes of the iteration's grid.
    """
    sums = np.array(found.sums).reshape(-1, 2, n_nodes)
    with replacing(folder / NAME) as temporary:
        np.savez(
            temporary,
            sums=sums,
            walkers=np.array(found.walkers, dtype=np.int64),
            snapshots=found.snapshots,
        )
