"""The sections of the input file but the engine: every key with its unit, default and meaning."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from plumed_cv.input_file.engines import CalculatorSection, Engine, Positive, Section
from plumed_cv.setup.plumed_actions import actions_of, biases_of

Count = Annotated[int, Field(gt=0)]
Margin = Annotated[float, Field(ge=0, le=1)]


class System(Section):
    """The process to study."""

    initial: Path | None = Field(
        None,
        description="structure before the process: any format of ASE, or a LAMMPS data or dump "
        "file. The last structure of the file is read, or that of file@index. Required without "
        "path.file",
    )
    final: Path | None = Field(
        None,
        description="structure after the process: same atoms, same order, same cell. Required "
        "without path.file",
    )
    reorder: bool | None = Field(
        None,
        description="order of the atoms in final. true: sort atoms of one element so that they "
        "move least from initial. false: keep the order, because atoms do exchange positions. If "
        "absent, an order that seems wrong is refused",
    )
    fixed: str | None = Field(
        None,
        description="atoms that do not move, by serial numbers, such as 1-32,40, in addition to "
        "those that the structures fix (FixAtoms of ASE, selective dynamics of POSCAR, move_mask "
        "of extended XYZ)",
    )
    temperature_K: Positive = Field(
        description="temperature, K; of several, as [300.0, 500.0], each is sampled in a folder of "
        "its own and begins from the one before (docs/temperatures.md)"
    )
    temperatures_K: tuple[float, ...] = Field((), exclude=True)  # where the input lists several
    expansion: list[float] = Field(
        [],
        description="coefficients e1, e2, ... of the thermal expansion: the lattice vectors of the "
        "structures are multiplied by 1 + e1 T + e2 T^2 + ..., T in K. If absent, the cell of the "
        "structures is used",
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


class PathSection(Section):
    """The minimum energy path at 0 K."""

    file: Path | list[Path] | None = Field(
        None,
        description="images of your own path: a file in any format that ASE reads (neb.traj@-9: "
        "for the last nine images), a list with one file for each image, or the folder of a band "
        "of VASP, with folders 00, 01, ... If an image lacks energy or forces, those of all images "
        "are computed. If absent, an elastic band between system.initial and system.final",
    )
    images: Annotated[int, Field(ge=5)] = Field(
        19, description="images of the elastic band, including the end states"
    )
    fmax_eV_A: Positive = Field(1e-3, description="largest remaining force on an atom, eV/angstrom")
    noise_A2: Positive | None = Field(
        None,
        description="variance of the noise on the path for training, A^2. If absent, the variance "
        "of thermal motion, from the forces on a few structures around the initial state",
    )
    structures: Count | None = Field(
        None,
        description="noisy structures drawn from the path. If absent, 20000, or more for a process "
        "in which many atoms move a little",
    )


class CV(Section):
    """The collective variable and its training."""

    alignment: Literal["none", "optimal"] = Field(
        "none",
        description="none: for a solid. optimal: for a molecule, which rotates and is first fitted "
        "to the initial state; there is then no minimum energy path",
    )
    atoms: Positive | str = Field(
        "auto",
        description="atoms on which the variable depends. auto: those that take part in the "
        "minimum energy path (docs/atoms.md); all with cv.alignment. all. heavy: all but hydrogen. "
        "A number: those within this radius, angstrom, of the atoms that move most along the path. "
        "PLUMED's serial numbers, such as 1-10,15",
    )
    start: Literal["linear", "path"] = Field(
        "linear",
        description="first collective variable. linear: projection on the line between the end "
        "states. path: an autoencoder trained on the noisy minimum energy path; this is also used "
        "if the projection does not rise along that path",
    )
    components: Count | None = Field(
        None,
        description="number of principal components D. If absent, twice the elbow of the noisy "
        "path (with alignment, of the snapshots of the first iteration), and at least 12",
    )
    hidden: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None,
        description="widths of the encoder's hidden layers; if absent, two layers of the recipe",
    )
    recipe: Literal["denoising", "paper"] = Field(
        "denoising",
        description="way of training. denoising: tanh, target is the mean path, within its "
        "components. paper: relu, tied weights, target are the noisy structures, within their "
        "principal components",
    )
    activation: Literal["relu", "tanh", "elu", "softplus", "silu", "sigmoid"] | None = Field(
        None, description="activation of the hidden layers; that of the recipe if absent"
    )
    tied: bool | None = Field(
        None,
        description="whether the decoder uses the weights of the encoder; as in the recipe if "
        "absent",
    )
    subspace: Literal["mean path", "pca"] | None = Field(
        None,
        description="components that are the input of the network: those of the mean path or of "
        "the structures (pca); as in the recipe if absent",
    )
    symmetry: bool = Field(
        True,
        description="whether the mean path is averaged over the symmetry operations that map the "
        "minimum energy path onto itself",
    )
    functions: Annotated[int, Field(ge=3, le=48)] | None = Field(
        None,
        description="number of polynomials of the mean path, at least one more than components. If "
        "absent, 2 + 4 for each 2.5 angstrom of the length of the minimum energy path, at least 6 "
        "and at most 48 (6 with cv.alignment; 16 or 48 at 0 K). With more polynomials the path "
        "bends more, and the iterations become unstable. Use 4 if the surroundings of the path are "
        "soft, as in molecules",
    )
    restarts: Count = Field(
        1, description="number of trained networks; the one with the lowest loss is kept"
    )
    latent: Count = Field(
        1,
        description="number of latent dimensions d, for 'plumed-cv energy'. More than one needs "
        "recipe = 'paper'. 'plumed-cv run' samples only one",
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu",
        description="device for the training: cpu, cuda (an NVIDIA GPU), or auto (cuda if there is "
        "one)",
    )


class Sampling(Section):
    """The bABF run of each iteration."""

    steps: Count = Field(
        100_000,
        description="steps of molecular dynamics in each iteration, of all walkers together; may "
        "be raised later",
    )
    walkers: Annotated[int, Field(gt=0, le=10_000)] = Field(
        1,
        description="simultaneous runs that share one estimate; each does its part of the steps in "
        "a process of its own",
    )
    repetitions: Annotated[int, Field(gt=0, le=1000)] = Field(
        1,
        description="independent runs of each iteration with other seeds, each with all steps and "
        "walkers. They run at the same time in processes of their own. Their samples are combined "
        "and their barriers compared; may be raised later",
    )
    start: Literal["initial", "path"] = Field(
        "initial",
        description="start of the walkers. initial: all in the initial state. path: evenly spread "
        "along the minimum energy path, so that both sides of the barrier are sampled from the "
        "beginning",
    )
    scheduler: str | None = Field(
        None,
        description="address (tcp://...) or scheduler file of a dask scheduler whose workers run "
        "the walkers; processes on this machine if absent",
    )
    timestep_fs: Positive = Field(1.0, description="time step, fs")
    thermostat: Literal["langevin", "brownian"] = Field(
        "langevin", description="Langevin dynamics or its overdamped limit"
    )
    friction_per_ps: Positive = Field(
        5.0,
        description="friction of the thermostat, 1/ps. With less friction the variable diffuses "
        "faster, but at low temperature the bias can overheat it while the bias is learned",
    )
    snapshot_stride: Count = Field(10, description="steps between snapshots for the training")
    mean_force: bool | None = Field(
        None,
        description="whether the forces on the atoms of the variable are kept for every snapshot, "
        "so that the profile can come from their mean along the variable. Its error is smaller "
        "than that of the histogram. LAMMPS's library and ASE give them during the run; other "
        "engines compute them again. true or false. If absent, true where it is possible (not with "
        "cv.alignment, and not with relu), except for gromacs, which needs too much time for it",
    )
    bins: Annotated[int, Field(ge=10)] = Field(
        100, description="intervals of the grid between xi = 0 and 1"
    )
    margin: Margin | tuple[Margin, Margin] | None = Field(
        None,
        description="width of the grid below xi = 0 and above 1: one number, or one for each end. "
        "If absent, the distance in xi from the end state to the point where the energy along the "
        "minimum energy path is 6 kT higher, but at most 0.6 of the distance to the first barrier; "
        "0.2 with cv.alignment",
    )
    ramp: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0,
        description="fraction of the run over which the weights of Eq. 12 grow to 1, so that early "
        "samples, taken with a rough bias, count less. 0.2 is enough for barriers of 20 kT",
    )
    prior: Literal["none", "energy", "previous"] = Field(
        "none",
        description="initial profile of the bias. none: zero. energy: the energy along the minimum "
        "energy path. previous: from the second iteration on, the profile of the previous "
        "iteration",
    )
    prior_samples: Count = Field(
        100,
        description="weight of the initial profile at each node, as a number of first samples",
    )
    kappa_eV: Positive | None = Field(
        None, description="spring constant of the extended variable, eV; kT bins^2 if absent"
    )
    segments: Annotated[int, Field(ge=6)] = Field(
        40,
        description="number of segments of a run. A killed run loses one segment, and the error "
        "bars are computed from the segments",
    )
    atom_deviation_limit_A: Positive | Literal["auto", "off"] = Field(
        "auto",
        description="guard: a trajectory ends when the distance of one atom from its position on "
        "the mean path exceeds this limit, angstrom. The next one starts from the last snapshot "
        "well inside the limit. auto: 0.6 of the longest displacement of one atom, at most 0.6 of "
        "the distance of nearest neighbours, and at least 0.4 of it or ten standard deviations of "
        "thermal motion. off: no guard, as with cv.alignment",
    )
    deviation_limit_A: Positive | None = Field(
        None,
        description="second limit of the guard, angstrom: on the distance of the whole structure "
        "from the mean path (Eq. 21), which grows with the number of atoms. No limit if absent",
    )
    model_deviation_limit: Positive | Literal["auto", "off"] = Field(
        "off",
        description="third limit of the guard, eV/angstrom: on the disagreement of the potentials "
        "of engine.committee about the force on one atom (or on engine.uncertainty, in its unit). "
        "auto: twice the 99 % quantile in the reactant. Only for ASE, which then computes all "
        "potentials in every snapshot (docs/model-deviation.md)",
    )
    plumed: str = Field(
        "",
        description="more PLUMED lines for each run, in angstrom, eV and fs: walls, other "
        "variables to print. Their output files are in the folder of each segment. If they contain "
        "a bias, the profile is that of the potential and the bias together, from the histogram. "
        "INCLUDE is refused, because a bias in the file would not be noticed",
    )

    @property
    def extra_biases(self) -> tuple[str, ...]:
        """Actions in `plumed` that apply forces, in order."""
        return tuple(biases_of(self.plumed))

    @model_validator(mode="after")
    def _biases_are_known(self) -> "Sampling":
        if any(action.name == "INCLUDE" for action in actions_of(self.plumed)):
            raise ValueError(
                "sampling.plumed: a file that INCLUDE reads could contain a bias; write its lines "
                "here in place of INCLUDE"
            )
        return self

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


class Iteration(Section):
    """When the procedure of Sec. 2.4 ends."""

    minimum: Count = Field(
        2,
        description="smallest number of iterations; from the second one on, a learned CV is "
        "sampled",
    )
    maximum: Count = Field(5, description="largest number of iterations")
    criterion: Literal["equivalence", "barrier"] = Field(
        "equivalence",
        description="when the procedure ends. equivalence: two successive collective variables are "
        "equivalent (Eq. 17). barrier: two successive flux barriers agree within two errors, "
        "and both have an error of at most barrier_tolerance_eV",
    )
    tolerance: Positive = Field(
        0.02,
        description="largest mean of 1 - cos between equivalent collective variables (epsilon of "
        "Eq. 17); twice the noise of the learned variables is also accepted",
    )
    barrier_tolerance_eV: Positive | None = Field(
        None,
        description="largest error of the flux barrier of a converged run, eV; if absent, the "
        "larger of 0.01 and kT/2",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        1, description="seed of velocities, thermostat, noise and training"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Iteration":
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} is more than maximum = {self.maximum}")
        return self


class Rate(Section):
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


class Config(Section):
    """A complete input file. Its file names are relative to its folder."""

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
                "system.expansion changes the cell, but the images of path.file have their own "
                "cell; give the end states instead, or a path in the expanded cell"
            )
        if self.path.file is not None and self.system.reorder is not None:
            raise ValueError(
                "system.reorder applies to system.initial and system.final; give all images of "
                "path.file the same order of atoms"
            )
        if self.path.file is not None and ends != (None, None):
            raise ValueError(
                "system.initial and system.final cannot be combined with path.file; remove one of "
                "them"
            )
        return self

    @model_validator(mode="after")
    def _deviation_is_known(self) -> "Config":
        limit, engine = self.sampling.model_deviation_limit, self.engine
        if limit == "off":
            return self
        if not isinstance(engine, CalculatorSection):
            raise ValueError(
                f"sampling.model_deviation_limit = {limit!r}: only engine.name = 'ase' and "
                "'torch-sim' watch it during the dynamics; for other engines, 'plumed-cv "
                "committee' marks the snapshots beyond a limit"
            )
        if engine.uncertainty is None and not engine.committee:
            raise ValueError(
                f"sampling.model_deviation_limit = {limit!r}: needs engine.committee, or the "
                "calculator's own engine.uncertainty"
            )
        if engine.uncertainty is None and not all(
            isinstance(each, CalculatorSection) for each in engine.members
        ):
            raise ValueError(
                f"sampling.model_deviation_limit = {limit!r}: every member of engine.committee "
                "must be a calculator of ASE"
            )
        return self

    @model_validator(mode="after")
    def _mean_force_is_known(self) -> "Config":
        if not self.sampling.mean_force:
            return self
        if biases := self.sampling.extra_biases:
            raise ValueError(
                f"sampling.mean_force = true: the forces would be those of the potential alone, "
                f"but sampling.plumed samples with {biases[0]}; remove mean_force"
            )
        from plumed_cv.cv.training import RECIPES  # SciPy takes a while

        if (self.cv.activation or RECIPES[self.cv.recipe].activation) == "relu":
            raise ValueError(
                "sampling.mean_force = true: not possible with relu, whose gradient jumps; "
                "set cv.activation = 'tanh', or remove mean_force"
            )
        return self

    @model_validator(mode="after")
    def _no_path_of_molecules(self) -> "Config":
        if self.cv.alignment == "none":
            return self
        needs = {
            "cv.atoms = a radius": not isinstance(self.cv.atoms, str),
            "path.file": self.path.file is not None,
            "cv.start = 'path'": self.cv.start == "path",
            "sampling.prior = 'energy'": self.sampling.prior == "energy",
            "sampling.start = 'path'": self.sampling.start == "path",
            "sampling.mean_force = true": bool(self.sampling.mean_force),
            "system.expansion": bool(self.system.expansion),
        }
        for name, given in needs.items():
            if given:
                raise ValueError(
                    f"{name}: not possible with cv.alignment = 'optimal', for molecules"
                )
        return self
