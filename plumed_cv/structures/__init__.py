"""Structures: reading and checking them, and the coordinates on which the CVs depend.

`reading` reads structures; `lammps_files` reads LAMMPS data and dump files; `atoms` has the cell
and the fixed atoms, and rotates structures as engines need them; `checking` checks end states and
the order of atoms; `frame` has the displacement frame; `neighbours` finds atoms near places;
`trajectory` reads trajectories as displacements.
"""

from plumed_cv.structures.atoms import (
    OF_DYNAMICS,
    cell_of,
    drift_of,
    fix,
    forget_moments,
    has_forces,
    has_kinds_by_moment,
    held_atoms,
    hold,
    is_oriented,
    kinds_of,
    orient,
    strip,
)
from plumed_cv.structures.checking import (
    CLOSEST_A,
    Misplaced,
    check_atoms,
    check_end_states,
    check_held,
    check_order,
    check_range,
    find_meant_order,
    find_misplaced,
)
from plumed_cv.structures.reading import (
    iterate_structures,
    read_oriented,
    read_structure,
    read_structures,
    split_index,
)

__all__ = [
    "CLOSEST_A",
    "OF_DYNAMICS",
    "Misplaced",
    "cell_of",
    "check_atoms",
    "check_end_states",
    "check_held",
    "check_order",
    "check_range",
    "drift_of",
    "find_meant_order",
    "find_misplaced",
    "fix",
    "forget_moments",
    "has_forces",
    "has_kinds_by_moment",
    "held_atoms",
    "hold",
    "is_oriented",
    "iterate_structures",
    "kinds_of",
    "orient",
    "read_oriented",
    "read_structure",
    "read_structures",
    "split_index",
    "strip",
]
