"""The bABF run of one iteration: in segments, by one walker or by several at once.

A walker has a folder of its own with its segments; of a run with one walker that is the folder of
the iteration itself:

    iteration-n/segment-kkk/             one walker
    iteration-n/walker-w/segment-kkk/    several
    iteration-n/repetition-r/...         the same for an independent repetition, from the second on
    iteration-n/shared/walker-w.state    what they learn from each other (WALKERS_DIR of BABF)

Several walkers or repetitions run through the interface of `concurrent.futures.Executor`, in
processes of this machine or in those of a dask cluster that sees the same files. What a walker has
to do is an `Order`, and all that it has done is in its folder: whoever works on the same order
later goes on after the last whole segment. Jobs of `plumed-cv sample` also keep what a segment that
was cut short has sampled: a run that must repeat to the last bit does not.

A segment is unfinished, whole, or native, and its folder's name says which:

               sampled to its end, or stopped by the guard
    unfinished-segment-k ----------------------------------> segment-k (whole)
        |       cut short, in a job: kept to its last state      ^
        |       cut short, in a run: removed, sampled again      | taken in
        +--> (nothing)                          native/segment-k (sampled by the engine alone)

What counts is in whole segments alone. One that is removed is a gap, whose steps are sampled again
after the last one. `home` is the folder with a walker's segments.

`order` is what a walker has to do, `walker` does it, `walkers` lets several do it at once, and
`folders` finds what they have done. `guard` says when a trajectory has left the process.
"""

from plumed_cv.sampling.folders import (
    barrier_so_far,
    by_repetition,
    copy_state,
    learned,
    read_colvar,
    records,
    remedy,
    segments,
    segments_by_walker,
    share_discarded,
    steps_of,
)
from plumed_cv.sampling.order import Order, Parameters, grid, open_engine, ramp, spread
from plumed_cv.sampling.walker import prepare, run_walker
from plumed_cv.sampling.walkers import executors, sample

__all__ = [
    "Order",
    "Parameters",
    "barrier_so_far",
    "by_repetition",
    "copy_state",
    "executors",
    "grid",
    "learned",
    "open_engine",
    "prepare",
    "ramp",
    "read_colvar",
    "records",
    "remedy",
    "run_walker",
    "sample",
    "segments",
    "segments_by_walker",
    "share_discarded",
    "spread",
    "steps_of",
]
