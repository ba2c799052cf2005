"""Learning a collective variable from displacements: components, mean path and autoencoder.

Lengths are in angstrom. M structures, N atoms, D components.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import meanpath, pca
from plumed_cv.cv.autoencoder import Examples, Network, Progress, train
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.meanpath import MeanPath
from plumed_cv.cv.symmetry import Operation
from plumed_cv.cv.training import Training
from plumed_cv.structures.frame import Array, chunks

# The mean path is continued beyond its ends by this fraction of its length, with this number of
# added structures at either end for each structure of the data.
_REACH_BEYOND = 0.5

_SHARE_BEYOND = 0.1


@one_thread()
def learn(
    displacements: NDArray[Any],
    variable: CollectiveVariable,
    n_components: int,
    training: Training,
    progress: Progress = lambda epoch, epochs, loss: None,
    provenance: dict[str, Any] | None = None,
    coordinate: NDArray[Any] | None = None,
    symmetry: Sequence[Operation] = (),
    through_ends: bool = False,
    continued: bool = True,
) -> tuple[CollectiveVariable, pca.PrincipalComponents, Network]:
    """Compute principal components and train an autoencoder; return a collective variable.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    variable
        Any collective variable of the same atoms. It gives atoms, reference and end states.
    n_components
        Number of principal components D.
    training
        Network and schedule.
    progress
        Called after every epoch.
    provenance
        Data to record in the model in addition to those of the training.
    coordinate
        Position of each structure along the process, shape (M,): the path parameter or a previous
        collective variable. By default, the projection on the line between the end states.
    symmetry
        Symmetry operations of the mean path (`symmetry.find_operations`); none by default.
    through_ends
        Whether the mean path must pass through the end states: at 0 K, with independent noise on
        the coordinates. The path is then also elastic, see `meanpath.fit`.
    continued
        Whether structures are added beyond both ends of the mean path, on its straight
        continuations by half of its length. The variable then rises there as between the end
        states. Otherwise it saturates. Structures are never added for several latent dimensions,
        where there is no single path.

    Returns
    -------
    tuple
        The collective variable with xi(q0) = 0 and xi(q1) = 1, the principal components, and the
        network with its losses.

    Raises
    ------
    UserError
        If the network gives both end states the same value, and as for `pca.fit`, `meanpath.fit`
        and `train`.
    """
    if coordinate is None:
        coordinate = _along_the_line(displacements, variable)
    principal, examples = _examples(
        displacements,
        coordinate,
        n_components,
        training,
        symmetry,
        variable,
        through_ends,
        continued and training.n_latent == 1,
    )
    network = train(examples, training, progress)
    learned = CollectiveVariable(
        serials=variable.serials,
        species=variable.species,
        reference_positions=variable.reference_positions,
        reference_cell=variable.reference_cell,
        pca_mean=principal.mean,
        pca_components=principal.components,
        encoder=network.encoder,
        decoder=network.decoder,
        activation=training.activation,
        latent_shift=np.zeros(training.n_latent),
        latent_scale=np.ones(training.n_latent),
        end_displacements=variable.end_displacements,
        alignment=variable.alignment,
        drift=variable.drift,
        provenance={
            **(provenance or {}),
            "structures": len(displacements),
            "final_loss_A2": float(network.losses[-1]),
            "final_misalignment": network.misalignment,
            "seed": training.seed,
        },
    )
    return rescale(learned), principal, network


def _along_the_line(
    displacements: NDArray[Any], variable: CollectiveVariable
) -> NDArray[np.float64]:
    """The linear collective variable, step 0 of Sec. 2.4, shape (M,)."""
    start, end = variable.end_displacements
    line = (end - start).ravel()
    parts = [
        displacements[part].reshape(-1, line.size) @ line for part in chunks(len(displacements))
    ]
    return np.asarray((np.concatenate(parts) - start.ravel() @ line) / (line @ line))


def _examples(
    displacements: NDArray[Any],
    s: NDArray[Any],
    n_components: int,
    training: Training,
    symmetry: Sequence[Operation],
    variable: CollectiveVariable,
    through_ends: bool,
    continued: bool,
) -> tuple[pca.PrincipalComponents, Examples]:
    """Return the subspace and the data of a training."""
    at_rest, drift = variable if through_ends else None, variable.drift
    if training.subspace == "pca":
        principal = pca.fit(displacements, n_components, training.seed, drift)
        path = None
    else:
        principal, path = pca.fit_mean_path(
            displacements, s, n_components, symmetry, at_rest, training.functions, drift
        )
    inputs = principal.project(displacements)
    if training.target == "structure" and not continued:
        return principal, Examples(inputs, inputs)
    if path is None:
        path = meanpath.fit(displacements, s, symmetry, at_rest, training.functions, drift)
    origin = principal.components @ principal.mean
    noise = inputs - (path.points(s, principal.components) - origin)
    if continued:
        beyond, nearest = _beyond(path, s)
        s, noise = np.concatenate([s, beyond]), np.concatenate([noise, noise[nearest]])
    targets = path.points(s, principal.components) - origin
    if training.target == "structure":
        return principal, Examples(targets + noise, targets + noise)
    tangents = path.tangents(s, principal.components)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-300)
    # A structure belongs to the nearest point of the path. Thermal motion along the path is
    # removed, because the noise of Sec. 3.2 has none.
    noise -= np.sum(noise * tangents, axis=1, keepdims=True) * tangents
    lengths = path.lengths(s, principal.components)
    return principal, Examples(targets + noise, targets, tangents, lengths - lengths.mean())


def _beyond(path: MeanPath, s: NDArray[Any]) -> tuple[Array, NDArray[np.int64]]:
    """Positions on the straight continuations of a mean path, and structures that give the noise.

    Without training data there, the network becomes constant. A harmonic wall at the end of the
    grid would then not act on the atoms, and a run could leave the process.

    Parameters
    ----------
    path
        The mean path.
    s
        Positions of the structures, shape (M,).

    Returns
    -------
    tuple
        Positions beyond both ends, shape (B,), and for each of them the index of a structure near
        that end, shape (B,).
    """
    n = max(1, round(_SHARE_BEYOND * len(s)))
    order = np.argsort(s, kind="stable")
    length = float(np.diff(path.lengths(np.array([0.0, 1.0])))[0])
    speeds = np.linalg.norm(path.tangents(np.array([path.first, path.last])), axis=1)
    steps = (np.arange(n) + 0.5) / n * _REACH_BEYOND * length / np.maximum(speeds, 1e-9)[:, None]
    places = np.concatenate([path.first - steps[0], path.last + steps[1]])
    return places, np.concatenate([order[:n], order[-n:]])


def rescale(variable: CollectiveVariable) -> CollectiveVariable:
    """Return the same collective variable with xi(q0) = 0 and xi(q1) = 1 (Sec. 3.3).

    Raises
    ------
    UserError
        If it gives both end states the same value.
    """
    ends = variable.components(variable.end_displacements)
    latent = variable.encode(ends) / variable.latent_scale + variable.latent_shift
    span = latent[1] - latent[0]
    spread = np.abs(latent).max() + 1.0
    if (np.abs(span) < 1e-6 * spread).any():
        raise UserError(
            "The autoencoder does not distinguish the end states; give it more structures, more "
            "principal components, or another seed."
        )
    return replace(variable, latent_shift=latent[0], latent_scale=1.0 / span)
