"""The plumed.dat of a finished run, which samples its CV in any engine."""

from pathlib import Path

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, write_text
from plumed_cv.cv import CollectiveVariable
from plumed_cv.input_file import Sampling
from plumed_cv.setup.plugin import babf_input
from plumed_cv.workflow.defaults import atom_limit
from plumed_cv.workflow.directory import RunDirectory


def export(run_directory: Path, output: Path, plugin: Path) -> CollectiveVariable:
    """Write the CV of a run that has ended and a plumed.dat that samples it from the start.

    Parameters
    ----------
    run_directory
        The run directory.
    output
        New folder.
    plugin
        What plumed.dat loads.

    Returns
    -------
    CollectiveVariable
        The CV.

    Raises
    ------
    UserError
        If the directory contains no answer, or `output` exists.
    """
    files = RunDirectory(run_directory)
    if not files.result.exists():
        raise UserError(
            f"{run_directory}: is not the directory of a run that has ended; run its input first."
        )
    given = read_json(files.root / "input.json")
    temperature_K, settings = given["system"]["temperature_K"], Sampling(**given["sampling"])
    variable = CollectiveVariable.load(files.root / "cv.safetensors")
    output.mkdir(parents=True)
    variable.save(output / "cv.safetensors")
    state = freeenergy.read_state(files.root / "babf.state")
    limit_A = atom_limit(settings, files, variable)
    production = production_input(temperature_K, settings, limit_A, plugin, state)
    write_text(output / "plumed.dat", production)
    return variable


def production_input(
    temperature_K: float,
    settings: Sampling,
    limit_A: float | None,
    plugin: Path,
    state: freeenergy.State,
    *,
    goes_on: bool = False,
) -> str:
    """The plumed.dat beside `cv.safetensors` that samples it as the run did, for any engine.

    It has the parameters of the run's state. It may start from that state, `babf.state`, which has
    its own weight of the prior.
    """
    parameters = sampling.Parameters.of_state(state)
    if not goes_on:
        parameters = parameters._replace(tau=None)
    lines = babf_input(
        plugin,
        Path("cv.safetensors"),
        temperature_K=temperature_K,
        **parameters._asdict(),
        state_in=Path("babf.state") if goes_on else None,
        state_out=Path("babf-new.state" if goes_on else "babf.state"),
        state_stride=10_000,
        colvar=Path("colvar"),
        colvar_stride=settings.snapshot_stride,
        deviation_limit_A=settings.deviation_limit_A,
        atom_limit_A=limit_A,
    )
    return lines + settings.plumed
