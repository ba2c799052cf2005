"""The actions as a module of PLUMED: its regression tests by the plugin, and its form."""

import re
from pathlib import Path

import pytest

from plumed_cv.setup.kernel import Plumed
from python.plumed_module import CPP, in_doxygen, write_module
from python.plumed_regtests import TESTS, compare, names, processes, run


@pytest.mark.parametrize("name", names())
def test_regression(name: str, plumed_installation: Plumed, plugin: Path, tmp_path: Path) -> None:
    if plumed_installation.executable is None:
        pytest.skip("this PLUMED has no `plumed` program")
    if processes(name) > 0 and not plumed_installation.mpi:
        pytest.skip("this PLUMED has no MPI: `plumed-cv plumed --mpi` builds one")
    assert compare(name, run(name, plumed_installation, plugin, tmp_path)) == []


@pytest.mark.parametrize("action", ["Autoencoder", "Babf"])
def test_every_keyword_has_a_regression_test(action: str) -> None:
    source = (CPP / "actions" / f"{action}.cpp").read_text()
    declared = re.findall(r'keys\.add\(\s*"\w+",\s*"(\w+)"', source)
    declared += re.findall(r'keys\.addFlag\("(\w+)"', source)
    declared += re.findall(r'keys\.use\("(\w+)"', source)
    declared += re.findall(r'add_scalar_input\(\s*keys, "(\w+)"', source)
    inputs = "".join(path.read_text() for path in TESTS.glob("rt-*/plumed.dat"))
    assert len(declared) > 1
    assert [key for key in declared if not re.search(rf"\b{key}\b", inputs)] == []


def test_the_module_has_the_form_of_plumed(tmp_path: Path) -> None:
    """Requirements of PLUMED's plumedcheck for each file."""
    write_module(tmp_path, doxygen=True)
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len({name.lower() for name in files}) == len(files)
    for name, text in files.items():
        if not name.endswith((".cpp", ".h")):
            continue
        assert text.startswith(f"/* {'+' * 73}\n   Copyright (c) "), name
        assert "../core" not in text, name
        assert "plumed_cv {" not in text, name
        if name.endswith(".h"):
            stem = name.removesuffix(".h")
            assert f"#ifndef __PLUMED_plumedcv_{stem}_h\n" in text
            assert f'\n#include "{name}"\n' in files[f"{stem}.cpp"]
        if not (name.endswith(".cpp") and name.removesuffix("cpp") + "h" in files):
            assert ("namespace PLMD {\nnamespace plumedcv {\n" in text) == ("namespace" in text)
    babf = files["BabfAction.cpp"]
    assert "kernel" not in babf.partition("PLUMEDOC")[0]
    assert "check_kernel" not in babf
    assert r"\par Examples" in babf


def test_a_manual_in_doxygen() -> None:
    page = "A $x$:\n\n$$\ny\n$$\n\n### Examples\n\n```plumed\nd: DISTANCE\n```\n"
    assert in_doxygen(page) == (
        "A \\f$x\\f$:\n\n\\f[\ny\n\\f]\n\n\\par Examples\n\n"
        "\\plumedfile\nd: DISTANCE\n\\endplumedfile\n"
    )
