"""Calculators that evaluate several structures in one call.

For a small structure, part of the time of a call does not depend on the number of atoms. This
matters most on a GPU. A calculator of ASE that can evaluate structures together has the method

    calculate_batch(structures: Sequence[Atoms]) -> tuple[energies, forces]

for M structures of the same N atoms in the same order. The energies (eV, shape (M,)) are those that
belong to the forces (eV/angstrom, shape (M, N, 3)). The structures must not be changed. Positions
may be outside the cell. With `engine.batch = 16` it receives up to 16 structures in each call.

This module makes such calculators of models of torch-sim, of CHGNet and of SevenNet, whose packages
are imported when a calculator is made.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from plumed_cv.common.errors import UserError
from plumed_cv.engines.ase_calculator import make
from plumed_cv.structures.frame import Array


class TorchSim(Calculator):
    """A model of torch-sim as a calculator.

    Parameters
    ----------
    model
        Dotted name of a model class of torch-sim (`torch_sim.models.interface.ModelInterface`), or
        of a function that returns a model.
    arguments
        Its arguments.

    Raises
    ------
    UserError
        If the model cannot be imported or made.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        kind = "a model class of torch-sim, or of a function that returns a model"
        self._model = make(model, arguments, "engine.model", kind)
        self._to_state = import_module("torch_sim").io.atoms_to_state
        self.implemented_properties = ["energy", "free_energy", "forces"]
        if self._model.compute_stress:
            self.implemented_properties.append("stress")

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for `atoms`."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        found = self._evaluate([self.atoms])
        energy = float(found["energy"][0])
        self.results = {"energy": energy, "free_energy": energy, "forces": found["forces"]}
        if "stress" in self.implemented_properties:
            stress = found["stress"][0]
            self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]

    def calculate_batch(self, structures: Sequence[Atoms]) -> tuple[Array, Array]:
        """Return energies (M,) and forces (M, N, 3) of structures."""
        found = self._evaluate(structures)
        return found["energy"], found["forces"].reshape(len(structures), -1, 3)

    def _evaluate(self, structures: Sequence[Atoms]) -> dict[str, Array]:
        """What the model returns for structures, in double precision."""
        inside = [atoms.copy() for atoms in structures]
        for atoms in inside:
            atoms.wrap()  # far from the cell, positions in single precision are worse
        state = self._to_state(inside, self._model.device, self._model.dtype)
        periodic = np.broadcast_to(np.asarray(state.pbc), 3)
        if not np.array_equal(periodic, structures[0].pbc):
            raise UserError(
                f"this version of torch-sim knows boundaries that are periodic along all "
                f"directions or none, and the structure is periodic along "
                f"{structures[0].pbc.tolist()}; use a newer version, or engine.name = 'ase'"
            )
        found = self._model(state)
        return {
            name: found[name].detach().cpu().double().numpy()
            for name in ("energy", "forces", "stress")
            if name in found
        }


def chgnet(**arguments: Any) -> Calculator:
    """CHGNet, with the arguments of `chgnet.model.dynamics.CHGNetCalculator`."""
    calculator: Calculator = import_module("chgnet.model.dynamics").CHGNetCalculator(**arguments)
    calculator.calculate_batch = partial(_evaluate_chgnet, calculator)  # type: ignore[attr-defined]
    return calculator


def _evaluate_chgnet(calculator: Any, structures: Sequence[Atoms]) -> tuple[Array, Array]:
    from_atoms = import_module("pymatgen.io.ase").AseAtomsAdaptor.get_structure
    number = len(structures)
    graphs = [calculator.model.graph_converter(from_atoms(atoms)) for atoms in structures]
    found = calculator.model.predict_graph(graphs, task="ef", batch_size=number)
    found = [found] if number == 1 else found
    sizes = [len(atoms) if calculator.model.is_intensive else 1 for atoms in structures]
    energies = [float(each["e"]) * size for each, size in zip(found, sizes, strict=True)]
    return np.array(energies), np.array([each["f"] for each in found])


def sevennet(**arguments: Any) -> Calculator:
    """SevenNet, with the arguments of `sevenn.calculator.SevenNetCalculator`."""
    calculator: Calculator = import_module("sevenn.calculator").SevenNetCalculator(**arguments)
    calculator.calculate_batch = partial(_evaluate_sevennet, calculator)  # type: ignore[attr-defined]
    return calculator


def _evaluate_sevennet(calculator: Any, structures: Sequence[Atoms]) -> tuple[Array, Array]:
    key = import_module("sevenn._keys")
    to_graph = import_module("sevenn.train.dataload").unlabeled_atoms_to_graph
    from_graph = import_module("sevenn.atom_graph_data").AtomGraphData.from_numpy_dict
    graphs = [from_graph(to_graph(atoms, calculator.cutoff)) for atoms in structures]
    for graph in graphs:
        if calculator.modal:
            graph[key.DATA_MODALITY] = calculator.modal
    data = import_module("torch_geometric.data").Batch.from_data_list(graphs)
    model = calculator.model
    model.set_is_batch_data(True)  # the model is also that of single structures
    try:
        found = model(data.to(calculator.device))
    finally:
        model.set_is_batch_data(False)
    energies, forces = (
        found[name].detach().cpu().double().numpy()
        for name in (key.PRED_TOTAL_ENERGY, key.PRED_FORCE)
    )
    return energies.reshape(-1), forces.reshape(len(structures), -1, 3)
