"""Events of a defect: the jumps between its sites, a catalogue of them, and diffusion.

`network` finds the sites of a defect in a crystal and the jumps that differ by symmetry. `jumps`
relaxes their end states and writes a catalogue, and `catalogue` is its format. `diffusion` computes
diffusion coefficients from the rates of the jumps, and `exports` writes these for other codes.
"""

from plumed_cv.events.catalogue import Catalogue, Event, read_catalogue
from plumed_cv.events.diffusion import Walk, correlation_factors, diffusivity, walk
from plumed_cv.events.exports import Rates, write_exports
from plumed_cv.events.jumps import find_jumps
from plumed_cv.events.network import (
    Crystal,
    Jump,
    Network,
    Sites,
    crystal_of,
    largest_holes,
    lattice_sites,
    network_of,
    sites_at,
)

__all__ = [
    "Catalogue",
    "Crystal",
    "Event",
    "Jump",
    "Network",
    "Rates",
    "Sites",
    "Walk",
    "correlation_factors",
    "crystal_of",
    "diffusivity",
    "find_jumps",
    "largest_holes",
    "lattice_sites",
    "network_of",
    "read_catalogue",
    "sites_at",
    "walk",
    "write_exports",
]
