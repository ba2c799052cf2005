"""Topology and parameters of a GROMACS run from its .tpr alone.

A .tpr has its positions, velocities, thermostat and seeds inside, and GROMACS has no tool that
changes them. But `gmx dump` prints all of it, so a topology (.top) and parameters (.mdp) are
written that give the same forces; the .tpr made of them is dumped too, and where the two differ in
anything but the dynamics, which a run sets itself, the .tpr is refused. Some numbers are dumped
with six digits: bonds and angles may differ by 1e-6.
"""

import re
from collections.abc import Iterator

from plumed_cv.common.errors import UserError

# What the dump calls a function, its section and type in a topology, and how many of its parameters
# are those of state A. Others are refused when the dumps are compared.
_FUNCTIONS = {
    "BONDS": ("bonds", 1, 2),
    "ANGLES": ("angles", 1, 2),
    "UREY_BRADLEY": ("angles", 5, 4),
    "PDIHS": ("dihedrals", 9, 2),
    "PIDIHS": ("dihedrals", 4, 2),
    "IDIHS": ("dihedrals", 2, 2),
    "RBDIHS": ("dihedrals", 3, 6),
    "LJ14": ("pairs", 1, 2),
    "CONSTR": ("constraints", 1, 1),
    "CONSTRNC": ("constraints", 2, 1),
    "SETTLE": ("settles", 1, 2),
    "VSITE3": ("virtual_sites3", 1, 2),
}

_PARTICLES = {"Atom": "A", "VSite": "V"}

# Parameters that forces and constraints depend on; what a run sets is not among them.
_PARAMETERS = (
    *("comm-mode", "nstcomm", "cutoff-scheme", "nstlist", "pbc", "periodic-molecules", "rlist"),
    *("verlet-buffer-tolerance", "verlet-buffer-pressure-tolerance"),
    *("coulombtype", "coulomb-modifier", "rcoulomb-switch", "rcoulomb", "epsilon-r", "epsilon-rf"),
    *("vdw-type", "vdw-modifier", "rvdw-switch", "rvdw", "DispCorr", "fourierspacing"),
    *("fourier-nx", "fourier-ny", "fourier-nz", "pme-order", "ewald-rtol", "ewald-rtol-lj"),
    *("lj-pme-comb-rule", "ewald-geometry", "epsilon-surface", "table-extension"),
    *("constraint-algorithm", "Shake-SOR", "shake-tol", "lincs-order", "lincs-iter"),
    *("lincs-warnangle",),
)

# Parameters that no force depends on, or that a run sets, as they are dumped: not compared.
_FREE = re.compile(
    r"integrator|tinit|dt|nsteps|init-step|simulation-part|mass-repartition-factor|bd-fric|ld-seed"
    r"|em.*|niter|fcstep|nst.*|nbfgscorr|rtpi|compressed.*|rlist|.*coupl.*|nh-chain.*"
    r"|print-nose.*|ensemble-temp.*|refcoord.*|posres-com.*|continuation|user.*|annealing.*|nrdf"
    r"|ref-t|tau-t|verlet-buffer-pressure-tolerance|fourierspacing"
)

_WORDS = {"true": "yes", "false": "no", "inf": "0"}


def parameters_and_topology(dump: str) -> tuple[str, str]:
    """Return the texts of an .mdp and of a .top file from the output of `gmx dump -s`.

    Raises
    ------
    UserError
        If there is an interaction that cannot be written.
    """
    return "\n".join(_mdp(dump)) + "\n", "\n".join(_topology(dump)) + "\n"


def difference(original: str, copy: str) -> str | None:
    """Return the first line of a dump that forces depend on and the other has not, or None."""
    ours = list(_compared(copy))
    for number, line in enumerate(_compared(original)):
        if number >= len(ours) or line != ours[number]:
            return line
    return None


def _mdp(dump: str) -> Iterator[str]:
    given = dict(re.findall(r"^   (\S+) += (.*?) *$", dump.partition("\ntopology:")[0], re.M))
    for key in _PARAMETERS:
        if key in given:
            yield f"{key} = {_WORDS.get(given[key], given[key])}"


def _topology(dump: str) -> Iterator[str]:
    functions = [
        (name, re.findall(r"= *([-+.\de]+)", numbers))
        for name, numbers in re.findall(r"functype\[\d+\]=(\w+), (.*)", dump)
    ]
    n_types = int(_first(r"\batnr=(\d+)", dump))
    pairs = functions[: n_types**2]
    if any(name != "LJ_SR" for name, _ in pairs):
        raise UserError(_cannot(pairs[0][0]))
    molecules = re.split(r"\n   moltype \(\d+\):", dump)[1:]
    kinds: dict[int, tuple[str, str]] = {}  # particle and atomic number of the types
    for molecule in molecules:
        for kind, particle, number in re.findall(
            r"type= *(\d+), typeB.*ptype= *(\w+),.*atomnumber= *(-?\d+)\}", molecule
        ):
            kinds[int(kind)] = particle, number
    factors = (_first(r"fudgeQQ += (\S+)", dump), _first(r"reppow += (\S+)", dump))
    yield f"[ defaults ]\n1 1 no 1.0 {' '.join(factors)}\n[ atomtypes ]"
    for kind in range(n_types):
        particle, number = kinds.get(kind, ("Atom", "0"))
        here = pairs[kind * n_types + kind][1]
        yield f"t{kind} {number} 0.0 0.0 {_PARTICLES.get(particle, particle)} {' '.join(here)}"
    yield "[ nonbond_params ]"
    for k, (_, numbers) in enumerate(pairs):
        if k // n_types <= k % n_types:
            yield f"t{k // n_types} t{k % n_types} 1 {' '.join(numbers)}"
    names = []
    for molecule in molecules:
        names.append(_first(r'name="(.*)"', molecule))
        yield from _molecule(molecule.partition("\ngrp[")[0], names[-1], functions)
    yield "[ system ]\nof a .tpr\n[ molecules ]"
    blocks = re.findall(r"moltype += (\d+) \".*\"\s+#molecules += (\d+)", dump)
    yield from (f"{names[int(kind)]} {number}" for kind, number in blocks)


def _molecule(text: str, name: str, functions: list[tuple[str, list[str]]]) -> Iterator[str]:
    yield f"[ moleculetype ]\n{name} 0\n[ atoms ]"
    residues = re.findall(r"residue\[\d+\]=\{name=\"(.*?)\", nr=(-?\d+), ic='(.)'\}", text)
    labels = re.findall(r" atom\[\d+\]=\{name=\"(.*)\"\}", text)
    atoms = re.findall(r"type= *(\d+), typeB.*m= *(\S+), q= *(\S+), mB.*resind= *(\d+)", text)
    for k, ((kind, mass, charge, residue), label) in enumerate(zip(atoms, labels, strict=True), 1):
        of, number, insertion = residues[int(residue)]
        place = f"{number}{insertion.strip()} {of} {label}"
        yield f"{k} t{kind} {place} {k} {charge} {mass}"
    sections: dict[str, list[str]] = {}
    for index, atoms_of in re.findall(r"^ +\d+ type=(\d+) \(\w+\)((?: +\d+)+)$", text, re.M):
        function, numbers = functions[int(index)]
        if function not in _FUNCTIONS:
            raise UserError(_cannot(function))
        section, kind, count = _FUNCTIONS[function]
        serials = [str(int(atom) + 1) for atom in atoms_of.split()]
        if section == "settles":
            del serials[1:]
        values = numbers[:count]
        if section == "dihedrals" and kind in (4, 9):
            values.append(numbers[-1])  # the multiplicity
        sections.setdefault(section, []).append(" ".join([*serials, str(kind), *values]))
    for section, lines in sections.items():
        yield "\n".join([f"[ {section} ]", *lines])
    yield "[ exclusions ]"
    for atom, excluded in re.findall(r"excls\[(\d+)\]\[num=\d+\]=\{([^}]*)\}", text):
        others = [str(int(other) + 1) for other in excluded.split(",") if other.strip()]
        yield " ".join([str(int(atom) + 1), *others])


def _compared(dump: str) -> Iterator[str]:
    """Lines of a dump that affect the forces."""
    parts = re.search(r"\ninputrec:(.*)\nheader:.*?\ntopology:(.*?)\ngrp\[", dump, re.DOTALL)
    assert parts is not None
    for line in parts[1].splitlines():
        key = re.split(r"[ =:\[]", line.strip(), maxsplit=1)[0]
        if key and not _FREE.fullmatch(key):
            yield " ".join(line.split())
    for line in parts[2].splitlines():
        if not re.match(r" +type\[\d+\]=|   name=", line):  # names of types and of the system
            yield " ".join(line.split())
    yield from re.findall(r"\ngrp\[VCM.*?\] (nr=\d+)", dump)


def _cannot(function: str) -> str:
    return (
        f"has interactions {function}, which cannot be read from a .tpr; give mdp, topology and "
        "structure"
    )


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return found[1]
