"""The bABF run of one iteration: in segments, by one walker or by several walkers at once.

Each walker has a folder with its segments. With one walker, this is the folder of the iteration:

    iteration-n/segment-kkk/             one walker
    iteration-n/walker-w/segment-kkk/    several walkers
    iteration-n/repetition-r/...         the same for the second and later repetitions
    iteration-n/shared/walker-w.state    exchange between the walkers (WALKERS_DIR of BABF)

Several walkers or repetitions run through the interface of `concurrent.futures.Executor`, in
processes of this machine or of a dask cluster that sees the same files. With an engine that
evaluates structures in batches, they run in one process instead. A `WalkerTask` describes
the work of a walker, and its folder contains all results. A later process with the same task
continues after the last complete segment. Jobs of `plumed-cv sample` also keep the samples of a
segment that was cut short. An ordinary run does not, because it must be repeatable to the last bit.

A segment is unfinished, whole or native. The name of its folder says which:

               sampled to its end, or stopped by the guard
    unfinished-segment-k ----------------------------------> segment-k (whole)
        |       cut short, in a job: kept to its last state      ^
        |       cut short, in a run: removed, sampled again      | taken in
        +--> (nothing)                          native/segment-k (sampled by the engine alone)

Only whole segments count. A segment that is removed leaves a gap, whose steps are sampled again
after the last segment. `home` is the folder with the segments of a walker.

`task` describes the work of a walker, `walker` does it, `next_segment` prepares each segment of it,
`walkers` runs several walkers at once, and `folders` finds their results. `guard` detects that a
trajectory has left the process.
"""

from plumed_cv.sampling.folders import (
    copy_state,
    count_segments,
    count_steps,
    describe_barrier,
    list_repetitions,
    list_segments,
    read_colvar,
    read_learned,
    read_records,
    remedy,
    share_discarded,
)
from plumed_cv.sampling.task import (
    Parameters,
    WalkerTask,
    choose_ramp,
    make_grid,
    open_engine,
    spread,
)
from plumed_cv.sampling.walker import prepare, run_walkers
from plumed_cv.sampling.walkers import is_of_cluster, open_cluster, open_executors, sample

__all__ = [
    "Parameters",
    "WalkerTask",
    "choose_ramp",
    "copy_state",
    "count_segments",
    "count_steps",
    "describe_barrier",
    "is_of_cluster",
    "list_repetitions",
    "list_segments",
    "make_grid",
    "open_cluster",
    "open_engine",
    "open_executors",
    "prepare",
    "read_colvar",
    "read_learned",
    "read_records",
    "remedy",
    "run_walkers",
    "sample",
    "share_discarded",
    "spread",
]
