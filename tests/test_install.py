"""The wheel in an environment of its own: what it needs travels with it or is declared by it.

Fetching torch and the others a second time would take minutes. So the new environment has links to
the distributions that the wheel requires, and that those require, in the tests' environment, and to
nothing else; pip then installs the wheel without an index, and refuses if one is missing.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from plumed_cv import doctor
from plumed_cv.setup.kernel import Plumed
from python.drills import runs
from tests.conftest import unavailable

REPOSITORY = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "MANIFEST.in", "README.md", "COPYING", "COPYING.LESSER"]


def link_requirements(wheel: Path, purelib: Path) -> None:
    """Link all that a wheel requires from this environment into the one of `purelib`."""
    (root,) = metadata.distributions(path=[str(wheel)])
    waiting = [Requirement(line) for line in root.requires or []]
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
            found = metadata.distribution(wanted.name)
            for line in found.requires or []:
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    further.marker = None
                    waiting.append(further)
            for file in found.files or []:
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
    subprocess.run([*pip, "--python", python, "install", "--no-index", wheel], check=True)
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
    """What `plumed-cv doctor` calls tested; python/tested_versions.py writes it."""
    here = {finding.name: finding.version for finding in doctor.doctor() if finding.version}
    tested = doctor.tested_versions()
    assert set(here) <= set(tested)
    if here != tested:
        other = {name: (here.get(name), tested[name]) for name in tested}
        unavailable(f"the tests run with other versions (here, recorded): {other}")


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
