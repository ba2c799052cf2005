"""The section `engine` of the input file, for each engine."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys of a section. Others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_BATCH = (
    "largest number of structures that are evaluated in one call. If it is larger than 1, all "
    "walkers run in one process (docs/machine-learning.md)"
)


class EngineSection(Section):
    """Keys of every engine."""

    directory: Path | None = Field(
        None, description="folder of relative file names; the folder of the input if absent"
    )
    committee: list[dict[str, Any]] = Field(
        [],
        description="other potentials, whose barriers follow from the snapshots of a converged run "
        "(docs/committee.md): a table of keys of this section for each. With name the table is a "
        "whole section, otherwise keys that it lacks are those of the run",
    )

    @property
    def packages(self) -> tuple[str, ...]:
        """Optional Python packages that the engine needs, as `extras.EXTRAS` names them."""
        return ()

    @property
    def walks_together(self) -> bool:
        """Whether all walkers run in one process, in batches."""
        return False

    @property
    def may_use_moments(self) -> bool:
        """Whether the energy may depend on magnetic moments: of calculators of ASE alone."""
        return any(isinstance(each, Ase) for each in (self, *self.members))

    @property
    def members(self) -> "list[Engine]":
        """The other potentials as sections of the input."""
        return [self._member(table) for table in self.committee]

    def _member(self, table: dict[str, Any]) -> "Engine":
        section: dict[str, Any] = {"directory": self.directory}
        if "name" not in table:
            section = self.model_dump(exclude={"committee"})
            if "calculator" in table or "model" in table:
                for key in ("arguments", "batch"):  # they are those of another calculator
                    section.pop(key, None)
        return _OneOfEngines(engine=section | table).engine

    @model_validator(mode="after")
    def _members_are_engines(self) -> "EngineSection":
        for number, table in enumerate(self.committee, 1):
            if "committee" in table:
                raise ValueError(f"committee, member {number}: has a committee of its own")
            try:
                self._member(table)
            except ValidationError as error:
                raise ValueError(f"committee, member {number}: {first_mistake(error)}") from None
        return self


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

    @property
    def packages(self) -> tuple[str, ...]:
        """The library, unless there is a program."""
        return () if self.program else ("lammps",)


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


class CalculatorSection(EngineSection):
    """Keys of engines that are calculators of ASE."""

    arguments: dict[str, Any] = Field({}, description="arguments of the calculator or model")
    batch: Annotated[int, Field(ge=1)] = Field(1, description=_BATCH)
    uncertainty: str | None = Field(
        None,
        description="key of the calculator's results with its own uncertainty of the forces, a "
        "number or an array whose largest value counts, for sampling.model_deviation_limit",
    )

    @property
    def packages(self) -> tuple[str, ...]:
        """PLUMED's bindings."""
        return ("plumed",)

    @property
    def walks_together(self) -> bool:
        """Whether all walkers run in one process, in batches."""
        return self.batch > 1

    @property
    def maker(self) -> tuple[str, dict[str, Any]]:
        """Dotted name and arguments of the calculator."""
        raise NotImplementedError


class Ase(CalculatorSection):
    """Any calculator of ASE."""

    name: Literal["ase"]
    calculator: str = Field(
        description="dotted name of a calculator class, or of a function that returns a calculator "
        "(ase.calculators.emt.EMT)"
    )

    @property
    def maker(self) -> tuple[str, dict[str, Any]]:
        """Dotted name and arguments of the calculator."""
        return self.calculator, self.arguments


class TorchSim(CalculatorSection):
    """Any model of torch-sim."""

    name: Literal["torch-sim"]
    model: str = Field(
        description="dotted name of a model class of torch-sim, or of a function that returns a "
        "model"
    )
    batch: Annotated[int, Field(ge=1)] = Field(16, description=_BATCH)

    @property
    def maker(self) -> tuple[str, dict[str, Any]]:
        """Dotted name and arguments of the model as a calculator."""
        arguments = {"model": self.model, "arguments": self.arguments}
        return "plumed_cv.engines.batches.TorchSim", arguments


ENGINES = (Lammps, Gromacs, Ase, TorchSim)


def engine_name(section: Any) -> str:
    """Return the name of the engine of a section that has not been checked."""
    if isinstance(section, dict):
        return str(section.get("name", "lammps"))
    return str(getattr(section, "name", ""))


Engine = Annotated[
    Annotated[Lammps, Tag("lammps")]
    | Annotated[Gromacs, Tag("gromacs")]
    | Annotated[Ase, Tag("ase")]
    | Annotated[TorchSim, Tag("torch-sim")],
    Discriminator(engine_name),
]


class _OneOfEngines(Section):
    engine: Engine


def first_mistake(error: ValidationError) -> str:
    """The first mistake in an input, in words."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if isinstance(part, str)]
    if parts[:1] == ["engine"]:
        del parts[1:2]  # the name of the engine, by which its keys were chosen
    place = ".".join(parts)
    if first["type"] == "union_tag_invalid":
        name = engine_name(first["input"])
        return f"engine.name = {name!r}: the engines are lammps, gromacs, ase and torch-sim"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        return f"there is no key {place}; 'plumed-cv run --keys' lists all"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    where = f"{place}{given}: " if place else ""
    return f"{where}{message}"
