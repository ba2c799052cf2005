"""CVs without a run: `energy` tests one at 0 K, and `train` trains one on trajectories."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plumed_cv.cli.options import AsJson, check_folder
from plumed_cv.common.bars import Bars
from plumed_cv.common.errors import UserError, naming
from plumed_cv.terminal import print_energies

Latent = typer.Option(min=1, help="latent dimensions d; more than one needs the recipe paper")
Device = typer.Option(help="device for the training: cpu, cuda, or auto (cuda if there is one)")


def energy(
    source: Annotated[
        list[Path],
        typer.Argument(help="input file (TOML), or images of a path in one file or one file each"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder")] = Path("energy"),
    structures: Annotated[
        int | None,
        typer.Option(min=2, help="noisy structures; if absent, as the input, or 20000 or more"),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="variance of a coordinate, A^2; if absent, 0.005 or as the input"),
    ] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="principal components D; if absent, from the elbow")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="denoising or paper; if absent, denoising or as the input")
    ] = None,
    latent: Annotated[int | None, Latent] = None,
    device: Annotated[str | None, Device] = None,
    symmetry: Annotated[
        bool | None,
        typer.Option(help="use the symmetry of the path; if absent, yes or as the input"),
    ] = None,
    atoms: Annotated[
        str, typer.Option(help="atoms of the CV: all, auto, heavy, a radius (A), or serial numbers")
    ] = "all",
    seed: Annotated[int | None, typer.Option(min=0, help="seed of noise and training")] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="input file with the engine that computes missing forces"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test an autoencoder at 0 K on the energies along a path.

    The output contains the energy profiles of the path, of its principal components and of the
    learned CV, with errors; the fraction of variance explained; and the atoms that take part (a
    column for OVITO). Images may have any format of ASE, with energies (eV) and forces
    (eV/angstrom).

    With an input file: plumed-cv energy demo/vacancy.toml

    With images in one file: plumed-cv energy path.xyz --structures 50000 -o c15

    With one file for each image: plumed-cv energy neb/0?/OUTCAR

    With a folder 00, 01, ... for each image: plumed-cv energy neb
    """
    from plumed_cv import input_file

    if noise is not None and not noise > 0:
        raise UserError(f"--noise {noise}: the variance must be positive.")
    inputs = [file for file in source if file.suffix == ".toml"]
    if inputs and len(source) > 1:
        raise UserError(f"{inputs[0]}: give either one input file or the images of a path.")
    if inputs and engine:
        raise UserError(f"--engine {engine}: {inputs[0]} already names an engine.")
    settings = input_file.load(inputs[0]) if inputs else None
    forces = input_file.load(engine) if engine else None
    from plumed_cv import workflow

    found = workflow.reproduce_energy(
        settings or (source if len(source) > 1 else source[0]),
        output,
        n_structures=structures,
        noise_A2=noise,
        n_components=components,
        recipe=recipe,
        n_latent=latent,
        device=device,
        use_symmetry=symmetry,
        atoms=_atoms(atoms),
        seed=seed,
        engine=forces,
        reporter=Bars(),
    )
    result = found.as_dict()
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print_energies(result)
        print(f"Figures and all results: {output}")


def train(
    trajectories: Annotated[
        list[Path],
        typer.Argument(help="any format of mdtraj or ASE (also file@index), or LAMMPS dumps"),
    ],
    initial: Annotated[Path, typer.Option(help="structure where the CV is 0")],
    final: Annotated[Path, typer.Option(help="structure where the CV is 1")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file")] = Path(
        "cv.safetensors"
    ),
    components: Annotated[
        int | None,
        typer.Option(min=1, help="principal components D; if absent, 12 or those of the mean path"),
    ] = None,
    functions: Annotated[
        int | None,
        typer.Option(min=3, help="polynomials of the mean path, more than components; 6 if absent"),
    ] = None,
    hidden: Annotated[
        str, typer.Option(help="widths of hidden layers, such as 24,24; if absent, as the recipe")
    ] = "",
    recipe: Annotated[str, typer.Option(help="denoising or paper")] = "denoising",
    latent: Annotated[int, Latent] = 1,
    device: Annotated[str, Device] = "cpu",
    activation: Annotated[
        str | None,
        typer.Option(help="relu, tanh, elu, softplus, silu or sigmoid; if absent, as the recipe"),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="read only every n-th structure")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="seed of weights and batches")] = 0,
    alignment: Annotated[
        str, typer.Option(help="none, or optimal for a molecule, which is fitted to --initial")
    ] = "none",
    atoms: Annotated[
        str, typer.Option(help="atoms of the CV: all, heavy, or serial numbers such as 1-10,15")
    ] = "all",
) -> None:
    """Train an autoencoder CV on trajectories.

    The structures are rotated so that the first cell vector is along x and the second in the xy
    plane, as in LAMMPS and in trajectory files.

    Examples: plumed-cv train md.dcd --initial a.xyz --final b.xyz -o cv.safetensors
              plumed-cv train md.xtc --initial a.pdb --final b.pdb --alignment optimal --atoms heavy
    """
    from plumed_cv import cv
    from plumed_cv.cv import learning
    from plumed_cv.cv.training import RECIPES
    from plumed_cv.structures import (
        cell_of,
        check_end_states,
        check_order,
        check_range,
        drift_of,
        held_atoms,
        orient,
        read_structure,
    )
    from plumed_cv.structures.trajectory import read_displacements

    try:
        widths = tuple(int(width) for width in hidden.split(",")) if hidden else None
    except ValueError:
        raise UserError(f"--hidden {hidden}: give widths such as 24,24.") from None
    check_folder(output)
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: the recipes are {', '.join(RECIPES)}.")
    chosen = RECIPES[recipe]
    training = replace(
        chosen, hidden=widths, functions=functions, n_latent=latent, device=device, seed=seed
    )
    if activation:
        training = replace(training, activation=activation)
    first, last = orient(read_structure(initial)), orient(read_structure(final))
    with naming(f"--initial {initial} and --final {final}"):
        check_end_states(first, last)
        if alignment == "none":
            check_order(first, last, "give --final the order of --initial.")
            check_range(first, last)
    species = first.get_chemical_symbols()
    ends = (first.positions, last.positions)
    serials = cv.select(atoms, species, held_atoms(first))
    linear = cv.linear(species, cell_of(first), *ends, alignment, serials, drift_of(first))
    data = read_displacements(trajectories, linear, stride=stride, species=species)
    with Bars().task("training", training.n_epochs) as update:
        learned, _, network = learning.learn(
            data,
            linear,
            components or training.limited(12),
            training,
            lambda epoch, epochs, loss: update(epoch, f"error {loss**0.5:.4f} A"),
        )
    learned.save(output)
    print(f"{output}: {learned}, {len(data)} structures, error {network.losses[-1] ** 0.5:.4f} A")


def _atoms(text: str) -> str | float:
    """A selection of atoms, in which a number alone is a radius."""
    try:
        return float(text)
    except ValueError:
        return text
