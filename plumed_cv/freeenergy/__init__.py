"""Bayesian adaptive biasing force: reference estimator, state files, profiles with errors.

Equation numbers are those of Baima et al., Phys. Chem. Chem. Phys. 24, 23152 (2022). The PLUMED
action BABF does the same in C++ and writes the files that are read here. It learns only a few sums
over samples at every node of the grid. States of independent walkers can therefore be added, and
successive states of one run subtracted. These differences are the blocks for error bars.

`estimator` is the method itself, on one or two CVs, with the nodes of `grids`. `profiles` computes
free energies along one CV, and `fluxes` flux barriers and rates, between the states that `basins`
finds. Both use the sums over samples and the curves of `sums`, and read heights from them by
`barriers`. `surfaces` computes free energies on two CVs. `jackknife` has estimates with their
errors. `meanforce` is the mean force of the atoms, and `pooling` the contribution of earlier
iterations to it. `files` reads and writes files.
"""

from plumed_cv.freeenergy.basins import Basins
from plumed_cv.freeenergy.estimator import (
    NATURAL,
    Estimator,
    Evaluation,
    State,
    prior_derivative,
    split_into_blocks,
    unit_in_words,
    weight_of_first,
)
from plumed_cv.freeenergy.files import (
    read_fes,
    read_last_step,
    read_state,
    read_surface,
    write_fes,
    write_prior,
    write_state,
    write_surface,
)
from plumed_cv.freeenergy.fluxes import Flux, Step, estimate_flux
from plumed_cv.freeenergy.grids import Grid, integrate_steps
from plumed_cv.freeenergy.jackknife import Estimate
from plumed_cv.freeenergy.profiles import Profile, estimate_profile, reweight_profile
from plumed_cv.freeenergy.sums import Earlier, bin_samples
from plumed_cv.freeenergy.surfaces import Surface, estimate_surface

__all__ = [
    "NATURAL",
    "Basins",
    "Earlier",
    "Estimate",
    "Estimator",
    "Evaluation",
    "Flux",
    "Grid",
    "Profile",
    "State",
    "Step",
    "Surface",
    "bin_samples",
    "estimate_flux",
    "estimate_profile",
    "estimate_surface",
    "integrate_steps",
    "prior_derivative",
    "read_fes",
    "read_last_step",
    "read_state",
    "read_surface",
    "reweight_profile",
    "split_into_blocks",
    "unit_in_words",
    "weight_of_first",
    "write_fes",
    "write_prior",
    "write_state",
    "write_surface",
]
