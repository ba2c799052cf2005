"""The test of an autoencoder at 0 K: trained on a noisy path, it gets the energy back (Sec. 4.1).

Lengths are in angstrom, energies in eV. G points of the path, N atoms, d latent dimensions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import localisation, pca, selection, symmetry
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.energy import (
    EnergyProfile,
    along_components,
    along_path,
    along_variable,
    check_forces,
    force_across,
    in_components,
    interpolate_images,
)
from plumed_cv.cv.localisation import Localisation
from plumed_cv.cv.selection import Selection
from plumed_cv.cv.training import Training
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array

VARIANCE_A2 = 0.005  # of the noise of a coordinate; that of iron at 300 K

# Called with the work done so far, the total work, and the name of the stage.
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Reconstruction:
    """Result of `reconstruct`.

    Parameters
    ----------
    path
        The path.
    neb, pca, ae_pca
        The profiles from the energies of the path, from the force within the principal components,
        and from the force along the collective variable of the autoencoder.
    forces
        The forces of the path integrated along it: the result of the quadrature for an exact
        variable.
    xi
        The collective variable along the path, shape (G, d).
    fraction_of_variance
        Fractions for the leading principal components (Fig. 2), at most 30.
    elbow
        Number of components above the noise.
    localisation
        The atoms that take part, among those of the collective variable.
    selection
        The atoms of the collective variable.
    variable
        The collective variable.
    training
        Settings of the training.
    n_operations
        Number of symmetry operations including the identity; 0 if none were searched.
    losses
        Mean square error of each epoch of the training, A^2.
    seconds
        Wall time of the stages.
    n_structures, variance_A2, seed
        The training data: number of structures, variance of their noise, and its seed.
    """

    path: EnergyPath
    neb: EnergyProfile
    pca: EnergyProfile
    ae_pca: EnergyProfile
    forces: EnergyProfile
    xi: Array
    fraction_of_variance: Array
    elbow: int
    localisation: Localisation
    selection: Selection
    variable: CollectiveVariable
    training: Training
    n_operations: int
    losses: Array
    seconds: dict[str, float]
    n_structures: int
    variance_A2: float
    seed: int

    def __repr__(self) -> str:
        return (
            f"Reconstruction({self.path.name}: barrier {self.neb.barrier:.4f} eV; "
            f"{self.pca.barrier:.4f} eV by {self.variable.n_components} components, "
            f"{self.ae_pca.barrier:.4f} eV by the autoencoder; {self.localisation.verdict})"
        )

    @property
    def notes(self) -> list[str]:
        """Sentences about properties of the path that limit the accuracy."""
        notes = []
        own = self.forces.deviation_from(self.neb) / max(float(np.ptp(self.neb.energy)), 1e-12)
        if own > 0.005:
            notes.append(
                f"{self.path.name}: the forces do not integrate to the energies (RMS deviation "
                f"{100 * own:.1f} % of their range): use more images if both come from one "
                "calculation."
            )
        across = force_across(self.path)
        if across > 0.05:
            notes.append(
                f"{self.path.name}: forces across the path or on its ends reach {across:.2f} eV/A; "
                "on a converged minimum energy path they are near 0."
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        profiles = {"neb": self.neb, "pca": self.pca, "ae_pca": self.ae_pca, "forces": self.forces}
        return {
            "path": self.path.name,
            "atoms": len(self.path.species),
            "cv_atoms": len(self.selection.serials),
            "cv_atoms_rule": self.selection.rule,
            "cv_share_of_motion": self.selection.share,
            "images": len(self.path.images),
            "largest_force_across_path_eV_A": force_across(self.path),
            "structures": self.n_structures,
            "noise_A2": self.variance_A2,
            "seed": self.seed,
            "elbow": self.elbow,
            "components": self.variable.n_components,
            "subspace": self.training.subspace,
            "target": self.training.target,
            "symmetry_operations": self.n_operations,
            "activation": self.training.activation,
            "profiles": {name: compare(profile, self.neb) for name, profile in profiles.items()},
            "localisation": self.localisation.as_dict(),
            "final_loss_A2": float(self.losses[-1]),
            "losses_A2": self.losses.tolist(),
            "fraction_of_variance": self.fraction_of_variance.tolist(),
            "notes": self.notes,
            "seconds": self.seconds,
            "parameter": self.neb.parameter.tolist(),
            "xi": self.xi.tolist(),
            **{f"{name}_eV": profile.energy.tolist() for name, profile in profiles.items()},
        }


def compare(profile: EnergyProfile, reference: EnergyProfile) -> dict[str, float | None]:
    """Barrier and end point of a profile with their errors relative to a reference.

    Returns
    -------
    dict
        Energies in eV, and percentages of the barrier of the reference (None without a barrier).
    """
    barrier_error = profile.barrier - reference.barrier
    end_error = profile.end_point - reference.end_point
    rms = profile.deviation_from(reference)

    def percent(energy: float) -> float | None:
        return 100.0 * energy / reference.barrier if reference.barrier > 1e-3 else None

    return {
        "barrier_eV": profile.barrier,
        "barrier_error_eV": barrier_error,
        "barrier_error_percent": percent(barrier_error),
        "end_point_eV": profile.end_point,
        "end_point_error_eV": end_error,
        "end_point_error_percent": percent(end_error),
        "rms_eV": rms,
        "rms_percent": percent(rms),
    }


@one_thread()
def reconstruct(
    path: EnergyPath,
    n_structures: int | None = None,
    variance_A2: float = VARIANCE_A2,
    n_components: int | None = None,
    training: Training | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total, stage: None,
    use_symmetry: bool = True,
    atoms: str | float = "all",
) -> Reconstruction:
    """Train a collective variable on a noisy path and get the path's energy back (Sec. 4.1).

    Parameters
    ----------
    path
        Images with energies and forces.
    n_structures
        Structures drawn from the path for the training; by `localisation.structures_for` if None.
    variance_A2
        Variance of the Gaussian noise of each coordinate, A^2; 0.005 resembles iron at 300 K.
    n_components
        Principal components D; by the elbow if None, see `pca.choose_components`.
    training
        Network and schedule; the defaults with `seed` if None.
    seed
        Seed of the noise and the components.
    progress
        Called now and then.
    use_symmetry
        Whether the mean path is made to have the symmetry of the path.
    atoms
        Atoms of the collective variable, as for `selection.choose_atoms`.

    Raises
    ------
    UserError
        If the forces do not fit the energies (`check_forces`), or if `learning.learn` refuses them.
    """
    from plumed_cv.cv import learning  # torch takes seconds to import

    training = training or Training(seed=seed)
    if (n_structures is not None and n_structures < 2) or not variance_A2 > 0:
        raise UserError(
            f"{n_structures} structures with a noise of variance {variance_A2} A^2: give two or "
            "more structures and a positive variance."
        )
    check_forces(path)
    first, last = path.images[0], path.images[-1]
    chosen = selection.choose_atoms(path, atoms)
    ends = (first.positions, last.positions)
    linear = cv.linear(path.species, path.cell, *ends, atoms=chosen.serials, drift=path.drift)
    part = path.of_atoms(chosen.serials)
    n_structures = n_structures or localisation.structures_for(part, variance_A2)
    clock = time.monotonic()
    seconds = {}

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.monotonic() - clock, time.monotonic()

    total = training.n_epochs
    progress(0, total, "drawing structures")
    samples = part.noisy_samples(n_structures, variance_A2, np.random.default_rng(seed))
    lap("structures")
    progress(0, total, "principal components")
    scree = pca.choose_components(samples, seed, drift=path.drift)
    lap("components")
    wanted = use_symmetry and "mean path" in (training.subspace, training.target)
    operations = symmetry.find_path_operations(path, chosen.serials) if wanted else []
    lap("symmetry")
    variable, principal, network = learning.learn(
        samples,
        linear,
        n_components or training.limited(scree.n_components, at_rest=True),
        training,
        lambda epoch, epochs, loss: progress(epoch, epochs, f"error {loss**0.5:.4f} A"),
        {"path": path.name, "noise_A2": variance_A2},
        coordinate=np.linspace(0.0, 1.0, n_structures),
        symmetry=operations,
        through_ends=True,
        continued=training.target == "mean path",  # the paper's recipe as it is
    )
    lap("training")
    x, _, _ = in_components(path, variable)
    return Reconstruction(
        path=path,
        neb=interpolate_images(path),
        pca=along_components(path, variable),
        ae_pca=along_variable(path, variable),
        forces=along_path(path),
        xi=variable.encode(x),
        fraction_of_variance=scree.fraction_of_variance,
        elbow=scree.elbow,
        localisation=localisation.localise(part, principal, variance_A2**0.5),
        selection=chosen,
        variable=variable,
        training=training,
        n_operations=len(operations),
        losses=network.losses,
        seconds=seconds,
        n_structures=n_structures,
        variance_A2=variance_A2,
        seed=seed,
    )
