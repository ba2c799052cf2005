"""Events of a defect: the jumps between its sites, a catalogue of them, and diffusion.

`network` finds the sites of a defect in a crystal and the jumps that differ by symmetry. `jumps`
relaxes their end states (`states`) and writes a catalogue, and `catalogue` is its format. `pairs`
finds the jumps of a vacancy near a solute, and `solutes` relaxes them.
`discovery` finds events from one state, by searches for `saddles` that a `notebook` records, with
the `confidence` that none is missing; `parallel` does several searches at once. `diffusion`
computes diffusion coefficients from the rates of the jumps, and `exports` writes these for other
codes.
"""

from plumed_cv.events.catalogue import Catalogue, Event, read_catalogue
from plumed_cv.events.confidence import Confidence
from plumed_cv.events.diffusion import (
    Walk,
    combine_rates,
    compute_correlation_factors,
    compute_diffusivity,
    compute_solute_diffusivity,
)
from plumed_cv.events.discovery import discover
from plumed_cv.events.exports import Rates, write_exports
from plumed_cv.events.jumps import find_jumps
from plumed_cv.events.network import (
    Crystal,
    Jump,
    Network,
    Sites,
    find_crystal,
    find_largest_holes,
    find_network,
    lattice_sites,
    sites_at,
)
from plumed_cv.events.pairs import Pairs, find_pairs
from plumed_cv.events.saddles import Searcher, find_defect_atoms

__all__ = [
    "Catalogue",
    "Confidence",
    "Crystal",
    "Event",
    "Jump",
    "Network",
    "Pairs",
    "Rates",
    "Searcher",
    "Sites",
    "Walk",
    "combine_rates",
    "compute_correlation_factors",
    "compute_diffusivity",
    "compute_solute_diffusivity",
    "discover",
    "find_crystal",
    "find_defect_atoms",
    "find_jumps",
    "find_largest_holes",
    "find_network",
    "find_pairs",
    "lattice_sites",
    "read_catalogue",
    "sites_at",
    "write_exports",
]
