"""The input file: values that are read, and one sentence for each mistake."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from plumed_cv import input_file
from plumed_cv.common.errors import UserError

GOOD = """
[system]
initial = "a.xyz"
final = "b.xyz"
temperature_K = 300
[engine]
potential = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
"""


def read(tmp_path: Path, text: str) -> input_file.Config:
    file = tmp_path / "input.toml"
    file.write_text(text)
    return input_file.load(file)


def test_paths_are_relative_to_the_input(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.system.initial == tmp_path / "a.xyz"
    assert found.engine.directory == tmp_path
    assert found.sampling.bins == 100
    file = read(tmp_path, GOOD.split("potential")[0] + 'potential = "fe.lmp"\n')
    assert isinstance(file.engine, input_file.Lammps)
    assert file.engine.potential == Path("fe.lmp")
    without_ends = GOOD.replace('initial = "a.xyz"\nfinal = "b.xyz"\n', "")
    one = read(tmp_path, without_ends + '[path]\nfile = "neb.xyz"')
    assert one.path.file == tmp_path / "neb.xyz"
    assert one.system.initial is None
    (tmp_path / "neb" / "00").mkdir(parents=True)
    (tmp_path / "neb" / "00" / "POSCAR").write_text("Fe")
    band = read(tmp_path, without_ends + '[path]\nfile = "neb"')
    assert band.path.file == [tmp_path / "neb" / "00" / "POSCAR"]
    several = read(tmp_path, without_ends + '[path]\nfile = ["0.cif", "1.cif", "/2.cif"]')
    assert several.path.file == [tmp_path / "0.cif", tmp_path / "1.cif", Path("/2.cif")]
    scheduled = read(tmp_path, GOOD + '[sampling]\nscheduler = "dask.json"')
    assert scheduled.sampling.scheduler == str(tmp_path / "dask.json")
    scheduled = read(tmp_path, GOOD + '[sampling]\nscheduler = "tcp://node1:8786"')
    assert scheduled.sampling.scheduler == "tcp://node1:8786"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("300", "-5"), "system.temperature_K = -5: .*greater than 0"),
        (GOOD.replace("300", "nan"), "system.temperature_K = nan"),
        (GOOD.replace("300", '"hot"'), "system.temperature_K = 'hot'"),
        (GOOD.replace("temperature_K = 300", ""), "system.temperature_K is missing"),
        (GOOD.replace('initial = "a.xyz"', ""), "system.initial is missing, and there is no path"),
        (GOOD.replace('final = "b.xyz"', ""), "system.final is missing"),
        (
            GOOD + '[path]\nfile = "neb.xyz"',
            "cannot be combined with path.file",
        ),
        (GOOD + "colour = 1", "no key engine.colour; 'plumed-cv run --keys' lists all"),
        (GOOD + "[smapling]\nsteps = 1", "no key smapling"),
        (GOOD + "[sampling]\nsteps = 100", "steps = 100 must be at least"),
        (GOOD + "[sampling]\nsteps = 1.5", "sampling.steps = 1.5"),
        (GOOD + "[sampling]\nwalkers = 0", "sampling.walkers = 0: .*greater than 0"),
        (GOOD + "[sampling]\nsteps = 999\nwalkers = 100", "must be at least walkers x snapshot"),
        (GOOD + '[cv]\nrecipe = "soup"', "cv.recipe = 'soup': .*'denoising' or 'paper'"),
        (GOOD + '[cv]\nactivation = "step"', "cv.activation = 'step': .*'relu'"),
        (GOOD + "[iteration]\nmaximum = 1", "minimum = 2 is more than maximum = 1"),
        (
            GOOD + "[sampling]\nmean_force = true\nplumed = 'w: UPPER_WALLS ARG=x AT=1 KAPPA=1'",
            "mean_force = true: .* samples with UPPER_WALLS",
        ),
        (
            GOOD + "[sampling]\nplumed = 'INCLUDE FILE=walls.dat'",
            "sampling.plumed: a file that INCLUDE reads could contain a bias; write its lines here",
        ),
        (GOOD + "[engine]\n", "not valid TOML"),
        (
            GOOD + "name = 'lammsp'",
            "engine.name = 'lammsp': the engines are lammps, gromacs",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "input.toml"))


def test_biases_among_the_users_lines() -> None:
    lines = """
    # METAD in a comment
    d: DISTANCE ATOMS=1,2
    wall: UPPER_WALLS ...
      ARG=d AT=3.0 KAPPA=1.0
    ...
    RESTRAINT ARG=d AT=2 KAPPA=3  # a bias without a label
    PRINT ARG=wall.bias FILE=METAD
    """
    assert input_file.Sampling(plumed=lines).extra_biases == ("UPPER_WALLS", "RESTRAINT")
    assert input_file.Sampling(plumed="PRINT ARG=ae.dev FILE=x").extra_biases == ()


@pytest.mark.parametrize(
    ("line", "biases"),
    [
        ("LABEL=w UPPER_WALLS ARG=d AT=1 KAPPA=1", ("UPPER_WALLS",)),
        ("LABEL=w ...\n UPPER_WALLS ARG=d AT=1 KAPPA=1\n...", ("UPPER_WALLS",)),
        ("w: ...\nUPPER_WALLS ARG=d\nAT=1 KAPPA=1\n... w", ("UPPER_WALLS",)),
        ("UPPER_WALLS_SCALAR ARG=d AT=1 KAPPA=1", ("UPPER_WALLS_SCALAR",)),
        ("u: UWALLS DATA=d AT=1 KAPPA=1", ("UWALLS",)),
        ("f: FISST ARG=d MIN_FORCE=0 MAX_FORCE=1 PERIOD=1 NINTERPOLATE=3 KBT=1", ("FISST",)),
        ("o: OPES_METAD_EXPLORE ARG=d PACE=1 BARRIER=1", ("OPES_METAD_EXPLORE",)),
        ("p: PLUMED FILE=other.dat", ("PLUMED",)),
        ("r: RDC DOSCORE GYROM=1 SCALE=1 ATOMS1=1,2 COUPLING1=8", ("RDC",)),
        ("r: RDC GYROM=1 SCALE=1 ATOMS1=1,2", ()),
        ("f: FUNNEL_PS LIGAND=1 POINTS=1,2", ()),
        ("RESTRAINT: DISTANCE ATOMS=1,2", ()),
        ("ENDPLUMED\nRESTRAINT ARG=d AT=2 KAPPA=3", ()),
    ],
)
def test_a_bias_in_every_form_of_a_line(line: str, biases: tuple[str, ...]) -> None:
    assert input_file.Sampling(plumed=f"d: DISTANCE ATOMS=1,2\n{line}").extra_biases == biases


def test_a_missing_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        input_file.load(tmp_path / "none.toml")


WORDS = ("required", "absent")


def test_every_key_is_described() -> None:
    keys = list(input_file.describe_keys())
    assert len({name for name, _, _ in keys}) == len(keys) > 25
    assert all(meaning for _, _, meaning in keys)
    lines = [f'"{name}" = {default}' for name, default, _ in keys if default not in WORDS]
    assert "iteration.tolerance" in tomllib.loads("\n".join(lines))  # the defaults can be copied
    required = {name for name, default, _ in keys if default == "required"}
    assert required == {
        *("system.temperature_K", "engine.potential (lammps)", "engine.calculator (ase)"),
        "engine.model (torch-sim)",
        *(f"engine.{name} (gromacs)" for name in ("mdp", "topology", "structure")),
    }


def test_every_engine_has_keys_of_its_own(tmp_path: Path) -> None:
    head = GOOD.split("potential")[0]
    found = read(tmp_path, head + 'name = "ase"\ncalculator = "a.B"\narguments = {x = [1, 2]}')
    assert isinstance(found.engine, input_file.Ase)
    assert found.engine.arguments == {"x": [1, 2]}
    assert found.engine.directory == tmp_path
    found = read(tmp_path, head + 'name = "torch-sim"\nmodel = "a.b"\narguments = {x = 1}')
    assert isinstance(found.engine, input_file.TorchSim)
    assert found.engine.walks_together
    calculator, arguments = found.engine.maker
    assert calculator == "plumed_cv.engines.batches.TorchSim"
    assert arguments == {"model": "a.b", "arguments": {"x": 1}}
    other = '\ncommittee = [{model = "c.d"}, {arguments = {x = 2}}]'
    found = read(tmp_path, head + 'name = "torch-sim"\nmodel = "a.b"\nbatch = 4' + other)
    members = [each for each in found.engine.members if isinstance(each, input_file.TorchSim)]
    assert [(each.model, each.batch) for each in members] == [("c.d", 16), ("a.b", 4)]
    found = read(tmp_path, head + 'name = "torch-sim"\nmodel = "a.b"\nbatch = 1')
    assert not found.engine.walks_together
    with pytest.raises(UserError, match=r"engine\.batch = 0"):
        read(tmp_path, head + 'name = "ase"\ncalculator = "a.B"\nbatch = 0')
    files = 'mdp = "a.mdp"\ntopology = "a.top"\nstructure = "a.gro"\n'
    found = read(tmp_path, head + 'name = "gromacs"\n' + files)
    assert isinstance(found.engine, input_file.Gromacs)
    with pytest.raises(UserError, match=r"engine\.mdp is missing"):
        read(tmp_path, head + 'name = "gromacs"\ntopology = "a.top"\nstructure = "a.gro"')
    with pytest.raises(UserError, match=r"no key engine\.potential"):
        read(tmp_path, head + 'name = "gromacs"\npotential = ""\n' + files)


def test_members_of_a_committee_lack_the_keys_of_the_run() -> None:
    first = {"name": "ase", "calculator": "a.b", "arguments": {"x": 1}, "directory": "here"}
    members: list[dict[str, Any]] = [
        {"arguments": {"x": 2}},
        {"calculator": "c.d"},
        {"name": "lammps", "potential": ["pair_style none"]},
    ]
    content = {
        "system": {"initial": "a.xyz", "final": "b.xyz", "temperature_K": 1.0},
        "engine": first | {"committee": members},
    }
    found = input_file.validate(content, "input").engine.members
    assert found == [
        input_file.Ase.model_validate(first | {"arguments": {"x": 2}}),
        input_file.Ase.model_validate(first | {"calculator": "c.d", "arguments": {}}),
        input_file.Lammps(directory=Path("here"), potential=["pair_style none"]),
    ]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"cutoff": 1}, r"engine: committee, member 2: there is no key engine\.cutoff"),
        ({"name": "vasp"}, r"member 2: engine\.name = 'vasp': the engines are"),
        ({"name": "lammps"}, r"member 2: engine\.potential is missing"),
        ({"committee": []}, r"member 2: has a committee of its own"),
    ],
)
def test_mistakes_in_a_committee(member: dict[str, Any], message: str) -> None:
    content = {
        "system": {"initial": "a.xyz", "final": "b.xyz", "temperature_K": 1.0},
        "engine": {"name": "ase", "calculator": "a.b", "committee": [{}, member]},
    }
    with pytest.raises(UserError, match=message):
        input_file.validate(content, "input")
