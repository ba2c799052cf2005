"""The section `engine` of the input file, for each engine."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys of a section. Others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSection(Section):
    """Keys of every engine."""

    directory: Path | None = Field(
        None, description="folder of relative file names; the folder of the input if absent"
    )


class Lammps(EngineSection):
    """LAMMPS."""

    name: Literal["lammps"] = "lammps"
    potential: list[str] | Path = Field(
        description="LAMMPS commands for the potential, or the name of a file with these commands"
    )
    units: Literal["metal", "real"] = Field(
        "metal",
        description="LAMMPS's units of the potential: metal (eV, ps) or real (kcal/mol, fs). All "
        "other keys and all results are in eV, angstrom and fs with both",
    )
    species: list[str] | None = Field(
        None,
        description="chemical symbols of LAMMPS types 1, 2, ... If absent, those that the "
        "potential names (pair_coeff * * file Ni Al), or the order of first appearance if the "
        "potential does not distinguish types",
    )
    coupling: Literal["auto", "external", "plumed"] = Field(
        "auto",
        description="coupling to PLUMED: by fix external, by fix plumed, or the faster one (auto)",
    )
    program: str | None = Field(
        None,
        description="command of an lmp with fix plumed (mpirun -np 4 lmp); the Python library if "
        "absent",
    )


class Gromacs(EngineSection):
    """GROMACS 2025 or newer."""

    name: Literal["gromacs"]
    mdp: Path = Field(
        description="run parameters (.mdp); plumed_cv sets integrator, steps, thermostat, seeds "
        "and output"
    )
    topology: Path = Field(description="topology (.top)")
    structure: Path = Field(
        description="structure with the names of the atoms (.gro, .g96, .pdb, .tpr)"
    )
    restraints: Path | None = Field(
        None, description="reference of position restraints (grompp -r); if absent, the structure"
    )
    index: Path | None = Field(None, description="index file (grompp -n)")
    program: str | None = Field(
        None, description="gmx or its path; if absent, the variable GMX, then gmx on PATH"
    )
    options: list[str] = Field(
        ["-ntmpi", "1", "-ntomp", "1", "-pin", "off"],
        description="options of mdrun: threads, GPU",
    )
    max_warnings: Annotated[int, Field(ge=0)] = Field(
        0, description="number of warnings of grompp that are accepted"
    )


class Ase(EngineSection):
    """Any calculator of ASE."""

    name: Literal["ase"]
    calculator: str = Field(
        description="dotted name of a calculator class, or of a function that returns a calculator "
        "(ase.calculators.emt.EMT)"
    )
    arguments: dict[str, Any] = Field({}, description="arguments of the calculator")


ENGINES = (Lammps, Gromacs, Ase)


def engine_name(section: Any) -> str:
    """Return the name of the engine of a section that has not been checked."""
    if isinstance(section, dict):
        return str(section.get("name", "lammps"))
    return str(getattr(section, "name", ""))


Engine = Annotated[
    Annotated[Lammps, Tag("lammps")]
    | Annotated[Gromacs, Tag("gromacs")]
    | Annotated[Ase, Tag("ase")],
    Discriminator(engine_name),
]
