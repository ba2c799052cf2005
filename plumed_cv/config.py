"""The input file of `plumed-cv run`: TOML, every key with its unit, default and meaning."""

import math
import re
import tomllib
from collections.abc import Iterator
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

from plumed_cv.common.errors import UserError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Margin = Annotated[float, Field(ge=0, le=1)]


# Actions of PLUMED that apply forces, by the beginning of their names: those of its modules bias,
# opes, ves, drr, eds, funnel, isdb, logmfd and maze, and ours.
_BIASES = (
    *("ABMD", "BABF", "BIASVALUE", "CALIBER", "DRR", "EDS", "EMMI", "EXTENDED_LAGRANGIAN"),
    *("EXTERNAL", "FUNNEL", "LOGMFD", "LOWER_WALLS", "MAXENT", "MAZE_", "METAD", "METAINFERENCE"),
    *("MOVINGRESTRAINT", "OPES_", "PBMETAD", "RESCALE", "RESTRAINT", "UPPER_WALLS", "VES_"),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class System(_Section):
    """The process to study."""

    initial: Path | None = Field(
        None,
        description="structure before the process, in any format of ASE's or a data or dump file "
        "of LAMMPS; the last one of a file, or file@index; required without path.file",
    )
    final: Path | None = Field(
        None,
        description="structure after it: same atoms, same order, same cell; "
        "required without path.file",
    )
    reorder: bool | None = Field(
        None,
        description="order of the atoms of final. true: put atoms of one element into the order of "
        "initial, so that they move least; false: keep it, atoms do exchange places. If absent, "
        "an order that seems wrong is refused",
    )
    temperature_K: Positive = Field(
        description="temperature, K; of several, as [300.0, 500.0], each is sampled in a folder of "
        "its own and begins from the one before (docs/temperatures.md)"
    )
    temperatures_K: tuple[float, ...] = Field((), exclude=True)  # where the input lists several
    expansion: list[float] = Field(
        [],
        description="thermal expansion of the lattice: its length at T is that of the structures "
        "times 1 + e1 T + e2 T^2 + ..., T in K; their cell is kept if absent",
    )

    @model_validator(mode="before")
    @classmethod
    def _several_temperatures(cls, given: Any) -> Any:
        """Take a list of temperatures apart: `temperature_K` is a number, here the first one."""
        if not isinstance(given, dict):
            return given
        if "temperatures_K" in given:
            raise ValueError("there is no key temperatures_K; give temperature_K the list")
        kelvin = given.get("temperature_K")
        if not isinstance(kelvin, list):
            return given
        numbers = [t for t in kelvin if isinstance(t, int | float) and 0 < t < math.inf]
        if not kelvin or len(numbers) < len(kelvin):
            raise ValueError(f"temperature_K = {kelvin}: give one positive number or several")
        if len({f"{t:g}" for t in numbers}) < len(numbers):
            raise ValueError(f"temperature_K = {kelvin}: give each temperature once")
        several = tuple(map(float, numbers))
        return given | {"temperature_K": several[0], "temperatures_K": several}

    def at(self, temperature_K: float) -> "System":
        """The same process at one temperature."""
        return self.model_copy(update={"temperature_K": temperature_K, "temperatures_K": ()})


class _Engine(_Section):
    directory: Path | None = Field(
        None, description="where relative file names begin; the input's folder if absent"
    )


class Lammps(_Engine):
    """LAMMPS."""

    name: Literal["lammps"] = "lammps"
    potential: list[str] | Path = Field(
        description="LAMMPS commands for the potential (units metal: eV, angstrom), "
        "or the name of a LAMMPS file with them"
    )
    species: list[str] | None = Field(
        None,
        description="chemical symbols of LAMMPS types 1, 2, ...; if absent, those that the "
        "potential names (pair_coeff * * file Ni Al), or by first appearance where all types are "
        "alike",
    )
    coupling: Literal["auto", "external", "plumed"] = Field(
        "auto", description="PLUMED through fix external, through fix plumed, or the faster one"
    )
    program: str | None = Field(
        None,
        description="an lmp that has fix plumed, with what starts it (mpirun -np 4 lmp); the "
        "Python library if absent",
    )


class Gromacs(_Engine):
    """GROMACS 2025 or newer."""

    name: Literal["gromacs"]
    mdp: Path | None = Field(
        None,
        description="run parameters; integrator, steps, thermostat, seeds and output are set by "
        "us; required without tpr",
    )
    topology: Path | None = Field(None, description="topology (.top); required without tpr")
    structure: Path | None = Field(
        None,
        description="structure with the names of the atoms (.gro, .g96, .pdb); required without "
        "tpr",
    )
    tpr: Path | None = Field(
        None, description="a .tpr alone instead of the three, where it can be read back"
    )
    restraints: Path | None = Field(
        None, description="reference of position restraints (grompp -r); structure if absent"
    )
    index: Path | None = Field(None, description="index file (grompp -n)")
    program: str | None = Field(
        None, description="gmx, or its path; the variable GMX, then gmx on PATH, if absent"
    )
    options: list[str] = Field(
        ["-ntmpi", "1", "-ntomp", "1", "-pin", "off"],
        description="options of mdrun: threads, GPU",
    )
    max_warnings: Annotated[int, Field(ge=0)] = Field(
        0, description="warnings of grompp that are accepted"
    )

    @model_validator(mode="after")
    def _files(self) -> "Gromacs":
        files = {"mdp": self.mdp, "topology": self.topology, "structure": self.structure}
        for name, file in files.items():
            if file is None and self.tpr is None:
                raise ValueError(f"engine.{name} is missing, and there is no engine.tpr instead")
            if file is not None and self.tpr is not None:
                raise ValueError(f"engine.tpr holds what engine.{name} says; remove one of them")
        return self


class Ase(_Engine):
    """Any calculator of ASE's."""

    name: Literal["ase"]
    calculator: str = Field(
        description="dotted name of a calculator class, or of a function that returns one "
        "(ase.calculators.emt.EMT)"
    )
    arguments: dict[str, Any] = Field({}, description="its arguments")


ENGINES = (Lammps, Gromacs, Ase)


def _engine_name(section: Any) -> str:
    if isinstance(section, dict):
        return str(section.get("name", "lammps"))
    return str(getattr(section, "name", ""))


Engine = Annotated[
    Annotated[Lammps, Tag("lammps")]
    | Annotated[Gromacs, Tag("gromacs")]
    | Annotated[Ase, Tag("ase")],
    Discriminator(_engine_name),
]


class PathSection(_Section):
    """The minimum energy path at 0 K."""

    file: Path | list[Path] | None = Field(
        None,
        description="images of your own path in any format that ASE reads (neb.traj@-9: for the "
        "last nine), or one file an image; energies and forces of all of them are computed where "
        "one lacks them. An elastic band between "
        "system.initial and system.final if absent",
    )
    images: Annotated[int, Field(ge=5)] = Field(
        19, description="images of the elastic band, end states included"
    )
    fmax_eV_A: Positive = Field(1e-3, description="largest force left on an atom, eV/angstrom")
    noise_A2: Positive | None = Field(
        None,
        description="variance of the noise on the path for training, A^2; if absent, that of "
        "thermal motion, by the forces on a few structures around the initial state",
    )
    structures: Count = Field(20000, description="noisy structures drawn from the path")


class CV(_Section):
    """The collective variable and its training."""

    alignment: Literal["none", "optimal"] = Field(
        "none",
        description="none: a solid; optimal: a molecule, which turns and is fitted to the initial "
        "state first; there is no minimum energy path then",
    )
    atoms: str = Field(
        "all",
        description="atoms that the variable depends on, with alignment: all, heavy (those that "
        "are not hydrogen), or PLUMED's serial numbers, as 1-10,15",
    )
    start: Literal["linear", "path"] = Field(
        "linear",
        description="first collective variable: projection on the line between the end states, or "
        "an autoencoder trained on the noisy minimum energy path, which is also taken if the "
        "projection does not rise along that path",
    )
    components: Count | None = Field(
        None,
        description="principal components D; twice the elbow of the noisy path (with alignment, of "
        "the first iteration's snapshots), and 12 at least, if absent",
    )
    hidden: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="widths of the encoder's hidden layers; two, by the recipe, if absent"
    )
    recipe: Literal["denoising", "paper"] = Field(
        "denoising",
        description="denoising: tanh, to the mean path, within its components; paper: relu, tied, "
        "to the noisy structures, within their principal components",
    )
    activation: Literal["relu", "tanh", "elu", "softplus", "silu", "sigmoid"] | None = Field(
        None, description="activation of the hidden layers; the recipe's if absent"
    )
    tied: bool | None = Field(
        None, description="whether the decoder has the encoder's weights; as the recipe if absent"
    )
    subspace: Literal["mean path", "pca"] | None = Field(
        None, description="whose components the network sees; as the recipe if absent"
    )
    symmetry: bool = Field(
        True,
        description="whether the mean path is averaged over what maps the minimum energy path onto "
        "itself",
    )
    functions: Annotated[int, Field(ge=3, le=48)] | None = Field(
        None,
        description="polynomials of the mean path, one more than components at least; if absent, "
        "2 + 4 for each 2.5 angstrom of the minimum energy path's length, 6 at least and 48 at "
        "most (6 with cv.alignment; 16 or 48 at 0 K). More bend faster and make the iterations "
        "unstable; 4 where the surroundings of the path are soft, as in molecules",
    )
    restarts: Count = Field(1, description="networks trained; the one of the lowest loss is kept")
    latent: Count = Field(
        1,
        description="latent dimensions d, for 'plumed-cv energy'; more than one need recipe = "
        "'paper', and 'plumed-cv run' samples one",
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu",
        description="where networks are trained: cpu; cuda, a GPU of NVIDIA's; auto, that where "
        "there is one",
    )


class Sampling(_Section):
    """The bABF run of each iteration."""

    steps: Count = Field(
        100_000,
        description="steps of molecular dynamics an iteration, of all walkers together; may be "
        "raised later",
    )
    walkers: Annotated[int, Field(gt=0, le=10_000)] = Field(
        1,
        description="runs at once that share one estimate; each does its part of the steps in a "
        "process of its own",
    )
    repetitions: Annotated[int, Field(gt=0, le=1000)] = Field(
        1,
        description="independent runs of each iteration with other seeds, each with all the steps "
        "and walkers, at once in processes of their own; their samples are put together and their "
        "barriers compared; may be raised later",
    )
    start: Literal["initial", "path"] = Field(
        "initial",
        description="where walkers start: all in the initial state, or evenly spread along the "
        "minimum energy path, so that none has to cross the barrier before its other side is known",
    )
    scheduler: str | None = Field(
        None,
        description="dask scheduler whose workers run the walkers, by its address (tcp://...) or "
        "its scheduler file; processes of this machine if absent",
    )
    timestep_fs: Positive = Field(1.0, description="time step, fs")
    thermostat: Literal["langevin", "brownian"] = Field(
        "langevin", description="Langevin dynamics or its overdamped limit"
    )
    friction_per_ps: Positive = Field(
        5.0,
        description="friction of the thermostat, 1/ps; less lets the variable diffuse faster, but "
        "at low temperature the bias, while it is learned, then drives it too hard",
    )
    snapshot_stride: Count = Field(10, description="steps between snapshots for the training")
    mean_force: bool | None = Field(
        None,
        description="whether the forces on the atoms of every snapshot are computed once more and "
        "the profile is that of their mean along the variable, whose error is smaller than that of "
        "the histogram. true or false; if absent, wherever it is possible and engine.name is not "
        "gromacs, which takes too long for it: not with cv.alignment, nor along a network of relu",
    )
    bins: Annotated[int, Field(ge=10)] = Field(
        100, description="intervals of the grid between xi = 0 and 1"
    )
    margin: Margin | tuple[Margin, Margin] | None = Field(
        None,
        description="how far the grid extends below xi = 0 and above 1: a number, or one for each "
        "end. If absent, to where the energy along the minimum energy path is 6 kT above the end "
        "state, but at most 0.6 of the distance from the end state to the first barrier; 0.2 with "
        "cv.alignment",
    )
    ramp: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0,
        description="part of the run over which the weights of Eq. 12 grow to 1: what is sampled "
        "while the bias is still rough counts less; a fifth is enough where barriers are 20 kT",
    )
    prior: Literal["none", "energy", "previous"] = Field(
        "none",
        description="profile that the bias starts from: none; the energy along the minimum energy "
        "path; or, from the second iteration on, the profile of the iteration before",
    )
    prior_samples: Count = Field(
        100,
        description="weight of that profile: that of so many of the first samples, at each node",
    )
    kappa_eV: Positive | None = Field(
        None, description="coupling of the extended variable, eV; kT bins^2 if absent"
    )
    segments: Annotated[int, Field(ge=6)] = Field(
        40, description="parts of a run: one is lost when killed, and error bars come from them"
    )
    atom_deviation_limit_A: Positive | Literal["auto", "off"] = Field(
        "auto",
        description="guard: a trajectory is ended when one atom is farther than this from its "
        "place on the mean path, angstrom, and goes on from its last snapshot well inside. auto: "
        "0.6 of the longest displacement of one atom, within 0.4 and 0.6 of the distance of "
        "nearest neighbours; off: no guard, as with cv.alignment",
    )
    deviation_limit_A: Positive | None = Field(
        None,
        description="a second limit, on the distance of the whole structure from the mean path "
        "(Eq. 21), angstrom, which grows with the number of atoms; none if absent",
    )

    plumed: str = Field(
        "",
        description="more PLUMED lines for each run, in angstrom, eV and fs: walls, other "
        "variables to print; files that they write are in the folder of each segment. With a bias "
        "among them the profile is that of the potential and the bias together, by the histogram",
    )

    @property
    def extra_biases(self) -> tuple[str, ...]:
        """Actions in `plumed` that apply forces, in order."""
        lines = (line.partition("#")[0] for line in self.plumed.splitlines())
        words = [re.sub(r"^\s*[\w@-]+:\s*", "", line).split() for line in lines]
        labelled = [part[0] for part in words if part]
        return tuple(name for name in labelled if name.startswith(_BIASES))

    @model_validator(mode="after")
    def _whole_segments(self) -> "Sampling":
        if self.steps < self.segments * self.snapshot_stride:
            raise ValueError(
                f"steps = {self.steps} must be at least segments x snapshot_stride = "
                f"{self.segments * self.snapshot_stride}"
            )
        if self.steps < self.walkers * self.snapshot_stride:
            raise ValueError(
                f"steps = {self.steps} must be at least walkers x snapshot_stride = "
                f"{self.walkers * self.snapshot_stride}"
            )
        return self


class Iteration(_Section):
    """When the procedure of Sec. 2.4 ends."""

    minimum: Count = Field(
        2, description="iterations at least: from the second on, a learned CV is sampled"
    )
    maximum: Count = Field(5, description="iterations at most")
    criterion: Literal["equivalence", "barrier"] = Field(
        "equivalence",
        description="equivalence: two successive collective variables are (Eq. 17); barrier: two "
        "successive flux barriers agree within two errors",
    )
    tolerance: Positive = Field(
        0.02,
        description="two collective variables are equivalent up to this mean of 1 - cos (epsilon "
        "of Eq. 17), or up to twice the noise of learning from the snapshots",
    )
    barrier_tolerance_eV: Positive | None = Field(
        None,
        description="largest error of the flux barrier of a run that has converged, eV; the larger "
        "of 0.01 and kT/2 if absent",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        1, description="seed of velocities, thermostat, noise and training"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Iteration":
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} is more than maximum = {self.maximum}")
        return self


class Rate(_Section):
    """The transmission coefficient, and with it the rate, after the iterations."""

    enabled: bool = Field(
        True,
        description="whether 'plumed-cv run' computes the transmission coefficient once it has "
        "converged; not with GROMACS, Brownian dynamics or a bias in sampling.plumed",
    )
    error: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="relative error of the transmission coefficient up to which shots are made"
    )
    shots: Count = Field(
        2000,
        description="pairs of trajectories from each dividing surface at most, whatever the error",
    )
    dynamics: Literal["nve", "langevin"] = Field(
        "nve",
        description="dynamics of these trajectories: at constant energy, or with the thermostat of "
        "the sampling",
    )
    residence_ps: Positive = Field(
        1.0,
        description="a trajectory is committed to a basin when it has stayed on that side of the "
        "dividing surface for so long, ps: what comes back earlier is no reaction",
    )
    longest_ps: Positive = Field(
        20.0, description="time after which a trajectory counts as unresolved, ps"
    )

    @model_validator(mode="after")
    def _long_enough(self) -> "Rate":
        if self.longest_ps < 2 * self.residence_ps:
            raise ValueError(
                f"longest_ps = {self.longest_ps:g} must be at least twice residence_ps = "
                f"{self.residence_ps:g}"
            )
        return self


class Config(_Section):
    """A whole input file. File names in it are relative to its folder."""

    system: System
    engine: Engine
    path: PathSection = PathSection()
    cv: CV = CV()
    sampling: Sampling = Sampling()
    iteration: Iteration = Iteration()
    rate: Rate = Rate()

    @model_validator(mode="after")
    def _one_path(self) -> "Config":
        ends = (self.system.initial, self.system.final)
        if self.path.file is None and None in ends:
            missing = "initial" if ends[0] is None else "final"
            raise ValueError(f"system.{missing} is missing, and there is no path.file instead")
        if self.path.file is not None and self.system.expansion:
            raise ValueError(
                "system.expansion changes the cell, and the images of path.file have theirs; give "
                "the end states instead, or a path in the expanded cell"
            )
        if self.path.file is not None and self.system.reorder is not None:
            raise ValueError(
                "system.reorder is for system.initial and system.final; give the images of "
                "path.file in one order of atoms"
            )
        if self.path.file is not None and ends != (None, None):
            raise ValueError(
                "system.initial and system.final are the ends of path.file; remove one or the other"
            )
        return self

    @model_validator(mode="after")
    def _mean_force_is_known(self) -> "Config":
        if not self.sampling.mean_force:
            return self
        if biases := self.sampling.extra_biases:
            raise ValueError(
                f"sampling.mean_force = true: the forces would be those of the potential alone, "
                f"and sampling.plumed samples with {biases[0]}; leave mean_force out"
            )
        from plumed_cv.cv.training import RECIPES  # SciPy takes a while

        if (self.cv.activation or RECIPES[self.cv.recipe].activation) == "relu":
            raise ValueError(
                "sampling.mean_force = true: not along a network of relu, whose gradient jumps; "
                "set cv.activation = 'tanh', or leave mean_force out"
            )
        return self

    @model_validator(mode="after")
    def _no_path_of_molecules(self) -> "Config":
        if self.cv.alignment == "none":
            if self.cv.atoms != "all":
                raise ValueError(
                    f"cv.atoms = {self.cv.atoms!r}: a choice of atoms needs cv.alignment = "
                    "'optimal'"
                )
            return self
        needs = {
            "path.file": self.path.file is not None,
            "cv.start = 'path'": self.cv.start == "path",
            "sampling.prior = 'energy'": self.sampling.prior == "energy",
            "sampling.start = 'path'": self.sampling.start == "path",
            "sampling.mean_force = true": bool(self.sampling.mean_force),
            "system.expansion": bool(self.system.expansion),
        }
        for name, given in needs.items():
            if given:
                raise ValueError(f"{name}: not with cv.alignment = 'optimal', for molecules")
        return self


def checked(content: dict[str, Any], source: Path | str) -> Config:
    """Make a configuration of the sections and keys of an input file.

    Parameters
    ----------
    content
        Keys and values by section.
    source
        What messages call it: the name of the file.

    Raises
    ------
    UserError
        If there is an unknown key or an impossible value: the first one is named, with what would
        do.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if isinstance(part, str)]
    if parts[:1] == ["engine"]:
        del parts[1:2]  # the name of the engine, by which its keys were chosen
    place = ".".join(parts)
    if first["type"] == "union_tag_invalid":
        name = _engine_name(first["input"])
        raise UserError(f"{source}: engine.name = {name!r}: there are lammps, gromacs and ase.")
    if first["type"] == "missing":
        raise UserError(f"{source}: {place} is missing.")
    if first["type"] == "extra_forbidden":
        raise UserError(f"{source}: there is no key {place}; 'plumed-cv run --keys' lists all.")
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    where = f"{place}{given}: " if place else ""
    raise UserError(f"{source}: {where}{message}.")


def load(path: Path | str) -> Config:
    """Read and check an input file.

    Raises
    ------
    UserError
        If it is missing, no TOML, or as for `checked`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: the input file does not exist.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}.") from None
    config = checked(content, path)
    folder = path.resolve().parent
    engine = config.engine.model_copy(
        update={"directory": folder / (config.engine.directory or ".")}
    )
    ends = {"initial": config.system.initial, "final": config.system.final}
    system = config.system.model_copy(
        update={name: folder / end for name, end in ends.items() if end is not None}
    )
    images = config.path.file
    if isinstance(images, list):
        images = [folder / image for image in images]
    elif images is not None:
        images = folder / images
    section = config.path.model_copy(update={"file": images})
    scheduler = config.sampling.scheduler
    if scheduler is not None and "://" not in scheduler:
        scheduler = str(folder / scheduler)
    sampling = config.sampling.model_copy(update={"scheduler": scheduler})
    return config.model_copy(
        update={"system": system, "engine": engine, "path": section, "sampling": sampling}
    )


def describe_keys() -> Iterator[tuple[str, str, str]]:
    """All keys of the input file: name, default ("required" if none), meaning with unit."""
    for section, field in Config.model_fields.items():
        if section == "engine":
            yield "engine.name", "lammps", "the engine: lammps, gromacs or ase"
            yield from _keys("engine", _Engine)
            for engine in ENGINES:
                for key, default, meaning in _keys("engine", engine):
                    if key not in ("engine.name", "engine.directory"):
                        yield f"{key} ({engine.__name__.lower()})", default, meaning
            continue
        section_model = field.annotation
        assert isinstance(section_model, type)
        assert issubclass(section_model, BaseModel)
        yield from _keys(section, section_model)


def _keys(section: str, model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, key in model.model_fields.items():
        if key.exclude:
            continue
        default = "required" if key.is_required() else str(key.default)
        yield f"{section}.{name}", default, key.description or ""
