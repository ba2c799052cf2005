"""Collective variables learned by autoencoders, sampled by Bayesian adaptive biasing force.

The names below are what a script or notebook needs; each is imported when it is first used, so that
`import plumed_cv` is quick.

Runs: `run` (structures and a calculator), `run_input` (an input file), `make_config`,
`load_config`, `read_result`, `Result`, `Rate`, `Profile`, `read_profile`, `find_path`.
Collective variables: `AutoencoderCV`, `LinearCV`, `DisplacementFrame` (estimators of scikit-learn's
kind), `CollectiveVariable`, `load_cv`, `similarity`.
Runs of others: `analyse_states`, `Analysis`, `Convergence`.
Mistakes of the user raise `UserError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from plumed_cv.common.errors import UserError
    from plumed_cv.cv.collective_variable import CollectiveVariable, load_cv
    from plumed_cv.cv.equivalence import similarity
    from plumed_cv.cv.estimators import AutoencoderCV, DisplacementFrame, LinearCV
    from plumed_cv.freeenergy.files import read_fes as read_profile
    from plumed_cv.freeenergy.profiles import Profile
    from plumed_cv.input_file import load as load_config
    from plumed_cv.workflow.analysis import Analysis, Convergence, analyse_states
    from plumed_cv.workflow.answer import Result, read_result
    from plumed_cv.workflow.from_atoms import find_path, make_config, run, run_input
    from plumed_cv.workflow.rate import Rate

# Where each name is, and under which name.
_PLACES = {
    "Analysis": "workflow.analysis",
    "AutoencoderCV": "cv.estimators",
    "CollectiveVariable": "cv.collective_variable",
    "Convergence": "workflow.analysis",
    "DisplacementFrame": "cv.estimators",
    "LinearCV": "cv.estimators",
    "Profile": "freeenergy.profiles",
    "Rate": "workflow.rate",
    "Result": "workflow.answer",
    "UserError": "common.errors",
    "analyse_states": "workflow.analysis",
    "find_path": "workflow.from_atoms",
    "load_config": "input_file:load",
    "load_cv": "cv.collective_variable",
    "make_config": "workflow.from_atoms",
    "read_profile": "freeenergy.files:read_fes",
    "read_result": "workflow.answer",
    "run": "workflow.from_atoms",
    "run_input": "workflow.from_atoms",
    "similarity": "cv.equivalence",
}

__all__ = [
    "Analysis",
    "AutoencoderCV",
    "CollectiveVariable",
    "Convergence",
    "DisplacementFrame",
    "LinearCV",
    "Profile",
    "Rate",
    "Result",
    "UserError",
    "__version__",
    "analyse_states",
    "find_path",
    "load_config",
    "load_cv",
    "make_config",
    "read_profile",
    "read_result",
    "run",
    "run_input",
    "similarity",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = _PLACES[name].partition(":")
    found = getattr(import_module(f"{__name__}.{module}"), own or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
