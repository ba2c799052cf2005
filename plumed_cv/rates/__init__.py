"""Rates beyond transition state theory.

`surface` defines the dividing surfaces and the cores of the basins on both sides, and selects the
snapshots near a surface. `shots` follows pairs of trajectories from such snapshots until they
commit to a basin. `transmission` computes the transmission coefficient and its error from the
shots. `events` identifies the minima that trajectories reach when they leave the process.

`harmonic` implements harmonic transition state theory: Vineyard's prefactor and quantum
corrections. `stationary` finds the minimum and the saddle point and their Hessians. `arrhenius`
fits rates at several temperatures. `multiplicity` counts the events that are equivalent by the
symmetry of the initial state.
"""

from plumed_cv.rates.events import Events
from plumed_cv.rates.shots import Leg, Outcome, Relaxed, Shooter, Shot, Task, spread_order
from plumed_cv.rates.surface import (
    NoShotsError,
    Snapshot,
    Surface,
    find_surfaces,
    read_snapshots,
    select_snapshots,
)
from plumed_cv.rates.transmission import MOST_RETURNS, Transmission, as_json, estimate_transmission

__all__ = [
    "MOST_RETURNS",
    "Events",
    "Leg",
    "NoShotsError",
    "Outcome",
    "Relaxed",
    "Shooter",
    "Shot",
    "Snapshot",
    "Surface",
    "Task",
    "Transmission",
    "as_json",
    "estimate_transmission",
    "find_surfaces",
    "read_snapshots",
    "select_snapshots",
    "spread_order",
]
