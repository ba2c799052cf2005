"""Rates beyond transition state theory.

`surface` has the dividing surfaces, the cores of the basins beside them and the snapshots that lie
there; `shots` follows pairs of trajectories from such snapshots until they commit to a basin;
`transmission` makes the transmission coefficient of shots, with its error; `events` tells apart
where trajectories go that leave the process.

`harmonic` has harmonic transition state theory: Hessians at the minimum and at the saddle point,
Vineyard's prefactor and quantum corrections. `arrhenius` fits rates at several temperatures.
`multiplicity` counts the events that the symmetry of the initial state makes out of one.
"""

from plumed_cv.rates.events import Events
from plumed_cv.rates.shots import Leg, Outcome, Relaxed, Shooter, Shot, spread_order
from plumed_cv.rates.surface import Snapshot, Surface, near, snapshots, surfaces
from plumed_cv.rates.transmission import Transmission, as_json, estimate

__all__ = [
    "Events",
    "Leg",
    "Outcome",
    "Relaxed",
    "Shooter",
    "Shot",
    "Snapshot",
    "Surface",
    "Transmission",
    "as_json",
    "estimate",
    "near",
    "snapshots",
    "spread_order",
    "surfaces",
]
