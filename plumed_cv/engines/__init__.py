"""The interface of engines, which compute forces and run molecular dynamics.

The workflow uses only this interface. Each engine is one file and does not depend on collective
variables. A long run consists of segments. Each segment starts from the final configuration of the
previous one and has its own folder and PLUMED input. Its result depends only on the `Segment` (and
the machine), and not on earlier work of the engine's process.

`engine` has the class `Engine`, and `segments` what it takes and returns. `plumed_input` has what
all engines need of PLUMED: the input of a segment, and the messages.
"""

from plumed_cv.engines.engine import Engine, Followed, Observer, check_folder
from plumed_cv.engines.segments import (
    RECORD,
    Dynamics,
    Record,
    Segment,
    SegmentResult,
    State,
    Thermostat,
    Watch,
    draw_velocities,
    read_record,
)

__all__ = [
    "RECORD",
    "Dynamics",
    "Engine",
    "Followed",
    "Observer",
    "Record",
    "Segment",
    "SegmentResult",
    "State",
    "Thermostat",
    "Watch",
    "check_folder",
    "draw_velocities",
    "read_record",
]
