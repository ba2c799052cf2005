"""The iterative procedure of Sec. 2.4 (Fig. 4): sample, train, compare, repeat.

Everything lives in a run directory, in files that are whole or absent, so that a run that was
killed goes on where its files end:

    input.json              the input, with what has changed since (`provenance.MAY_CHANGE`)
    provenance.json         input, versions and machine of every start
    path.xyz, path.json     the minimum energy path, and what it took; none of a molecule
    multiplicity.json       number of equivalent events by the symmetry of the initial state
    components.json         number of principal components, and what it was chosen by
    cv-0.safetensors        the first collective variable; cv-n is trained in iteration n
    model-deviation.json    model deviation in the reactant and its limit, if the guard has one
    training-n.json         losses and variances of that training
    iteration-n/            the bABF run along cv-(n-1); with several walkers see `sampling`
        defaults.json       margins of its grid and limit of the guard that follow from the CV
        segment-kkk/        a part of it: plumed.dat, snapshots.dcd, colvar, babf.state, end.npz
        earlier.npz         what the snapshots of earlier iterations add to its mean force
        fes.dat             free energy profile
        result.json         barriers, how it went, and the similarity of cv-n to cv-(n-1); without
                            cv-n the iteration has not ended
    labels/                 structures for a better method, and the correction by them (`label`)
    harmonic/               harmonic theory, where it was asked for: harmonic.json and more
    result.json, fes.dat, profiles.png, cv.safetensors, plumed.dat     the answer

A run at several temperatures has such a directory for each (`temperatures`).

`procedure` does what is missing there, in order; `directory` has the names, `mep` the end states
and the path between them, `learning` the collective variables, `defaults` their grid and guard,
`earlier` what the iterations before add to one, `samples` what an iteration has sampled,
`estimates` the barriers and rates from it, `keys` how result.json writes them, `results` the values
of each iteration and the answer, `production` the plumed.dat of a finished run, `repetitions`
whether several runs found the same, `speed` what a faster PLUMED would save, `checks` whether the
sampling of an iteration was sufficient, and `verdict` which iteration gives the answer and whether
the run has converged. `transmission` adds the rate to the
answer, `shooting` makes the trajectories for it, and `rate_of_steps` computes it. `committee` finds
the error of the potential, `marks` the snapshots in which potentials disagree, and `deviation` the
limit at which the dynamics ends for that reason. `label` corrects the answer by structures of a
better method, with `label_candidates`, `label_structures` and `label_correction`; `label_ascent`
finds structures in which a committee disagrees most.
`harmonic_theory` has the harmonic rate and the number of equivalent events, `temperatures` runs at
several temperatures, and `beginning` what one of them hands over to the next. `zero_kelvin` gets
the energy along a path back, without dynamics. `answer` (with `rate`) is the result as an object,
`analysis` what samples say and how it converges, `from_atoms` a run without an input file.
`campaign` does all events of a catalogue, and `diffusion` makes diffusion coefficients of their
rates.
"""

from plumed_cv.workflow import committee, label, transmission
from plumed_cv.workflow.analysis import (
    Analysis,
    Convergence,
    analyse_states,
    explain_unknown_error,
    read_sampled,
)
from plumed_cv.workflow.answer import Result, read_result
from plumed_cv.workflow.campaign import run_campaign
from plumed_cv.workflow.checks import check_sampling
from plumed_cv.workflow.diffusion import compute_diffusion
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.estimates import analyse_course, analyse_samples, estimate_flux_barrier
from plumed_cv.workflow.formation import read_formation
from plumed_cv.workflow.harmonic_theory import (
    compute_harmonic,
    escape_in_words,
    rate_of,
    surface_rate,
)
from plumed_cv.workflow.keys import as_json, minima_of, profile_as_json, surfaces_of
from plumed_cv.workflow.label_ascent import find_uncertain
from plumed_cv.workflow.mep import find_path, read_end_states
from plumed_cv.workflow.procedure import NoBarrierError
from plumed_cv.workflow.production import export
from plumed_cv.workflow.rate import Rate
from plumed_cv.workflow.results import RESULTS, analyse, complete, in_words, summarise
from plumed_cv.workflow.samples import Sampled, read_samples
from plumed_cv.workflow.temperatures import (
    compare_harmonic,
    describe_anharmonicity,
    fit_in_words,
    is_series,
    iterate_runs,
    make_curve,
    run,
    sample,
    write_rates,
)
from plumed_cv.workflow.verdict import Verdict, judge, related_by_symmetry
from plumed_cv.workflow.zero_kelvin import reproduce_energy

__all__ = [
    "RESULTS",
    "Analysis",
    "Convergence",
    "NoBarrierError",
    "Rate",
    "Result",
    "RunDirectory",
    "Sampled",
    "Verdict",
    "analyse",
    "analyse_course",
    "analyse_samples",
    "analyse_states",
    "as_json",
    "check_sampling",
    "committee",
    "compare_harmonic",
    "complete",
    "compute_diffusion",
    "compute_harmonic",
    "describe_anharmonicity",
    "escape_in_words",
    "estimate_flux_barrier",
    "explain_unknown_error",
    "export",
    "find_path",
    "find_uncertain",
    "fit_in_words",
    "in_words",
    "is_series",
    "iterate_runs",
    "judge",
    "label",
    "make_curve",
    "minima_of",
    "profile_as_json",
    "rate_of",
    "read_end_states",
    "read_formation",
    "read_result",
    "read_sampled",
    "read_samples",
    "related_by_symmetry",
    "reproduce_energy",
    "run",
    "run_campaign",
    "sample",
    "summarise",
    "surface_rate",
    "surfaces_of",
    "transmission",
    "write_rates",
]
