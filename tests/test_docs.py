"""The documentation is correct: links, keywords, sentences and numbers.

What it shows, commands and inputs, is run by test_pages.py. The site as a whole, with every link of
it, is checked by `make docs`.
"""

import ast
import json
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import ACTIONS, DOCS, PAGES, ROOT, blocks

SCRIPTS = ROOT / "python" / "README.md"


@pytest.mark.parametrize("page", [*PAGES, SCRIPTS], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http:", "https:", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize(
    "page",
    [*PAGES, SCRIPTS, ROOT / "CHANGELOG.md"],
    ids=lambda page: page.name,
)
def test_text_wraps_at_100_columns(page: Path) -> None:
    """Rows of tables, code, formulas and comments may be longer."""
    text = re.sub(
        r"^```.*?^```|\$\$.*?\$\$|<!--.*?-->",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.M | re.S,
    )
    long = [line for line in text.splitlines() if len(line) > 100 and line[:1] != "|"]
    assert not [line for line in long if not line.startswith(" " * 4) and "](" not in line]


def test_the_list_of_scripts_has_all_of_them() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", SCRIPTS.read_text(encoding="utf-8")))
    scripts = {str(file.relative_to(SCRIPTS.parent)) for file in SCRIPTS.parent.rglob("*.py")}
    of_drills = {name for name in scripts if name.startswith("drills/")} - {"drills/fuzzers.py"}
    assert named == scripts - of_drills


def test_pages_of_actions_have_all_keywords() -> None:
    from python.site_pages import action_page

    for source in ACTIONS:
        page = action_page(source)
        calls = r'keys\.add\(\s*"\w+",|keys\.addFlag\(|add_scalar_input\(\s*keys,'
        names = re.findall(rf'(?:{calls})\s*"(\w+)"', source.read_text())
        assert names
        assert names == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
        assert "## Examples" in page


def test_modules_import_from_those_above_them() -> None:
    """The order is that of the list in CONTRIBUTING.md, which must be complete."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.partition("plumed_cv/  ")[2].partition("cpp/core/")[0].splitlines()[1:]
    words = [word for line in lines for word in line[2:22].split()]
    place = {word.removesuffix(".py").rstrip("/"): k for k, word in enumerate(words)}
    assert len(place) > 12
    for file in (ROOT / "plumed_cv").rglob("*.py"):
        own = file.relative_to(ROOT / "plumed_cv").parts[0].removesuffix(".py")
        if own in ("__init__", "examples"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            names = node.module.split(".")[:2]
            if names == ["plumed_cv"]:
                names = [alias.name for alias in node.names]
            for name in set(names) & set(place):
                assert place[name] <= place[own], f"{file}: imports {name}"


def sentences() -> Iterator[str]:
    """Texts in the sources, without the values that are inserted."""
    for file in (ROOT / "plumed_cv").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for folder in ("core", "actions"):
        for file in (ROOT / "cpp" / folder).iterdir():
            text = re.sub(
                r"^\s*//.*|'\"'", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            text = re.sub(r'"\s*\n\s*"', "", text)
            yield from re.findall(r'"((?:[^"\\]|\\.)*)"', text)


def test_troubleshooting_quotes_the_program() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    known = list(sentences())
    assert len(quoted) > 20
    for part in [part for words in quoted for part in words.split("...") if part]:
        assert any(part in text for text in known), part


def rows(page: Path) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]


@pytest.mark.committed
def test_numbers_are_those_of_the_data() -> None:
    measured = {
        (row[0], row[1]): row[3].split()[0] for row in rows(DOCS / "efficiency.md") if len(row) == 9
    }
    compared = [row for row in rows(DOCS / "comparison.md") if len(row) == 3][2:]
    assert len(compared) == 8
    for name, *errors in compared:
        method = name.split()[0]
        assert errors == [measured[method, "100,000"], measured[method, "500,000"]]

    process = ""
    for row in [row for row in rows(DOCS / "localised.md") if len(row) == 7][2:]:
        process = row[0] or process
        data = json.loads((DOCS / "zero-kelvin" / f"{process}.json").read_text(encoding="utf-8"))
        if row[0]:
            share, moving, participation = row[2], row[3], row[4]
            for words in (f"process is {row[1]}", share, f"on {moving} atoms", participation):
                assert words in data["verdict"]
        structures = int(row[5].replace(",", ""))
        lost = [run["error_percent"] for run in data["runs"][f"denoising {structures}"]]
        assert row[6] == f"{statistics.median(lost):.2f}"

    of_seed_1 = [row[2:8] for row in rows(DOCS / "results.md") if row[:2] == ["linear", "1"]]
    for page in (ROOT / "README.md", DOCS / "tutorial-vacancy.md"):
        assert [row for row in rows(page) if len(row) == 6][2:] == of_seed_1


def test_inputs_of_the_example_are_those_of_its_file() -> None:
    example = ROOT / "plumed_cv" / "examples" / "vacancy-fe" / "vacancy.toml"
    whole = tomllib.loads(example.read_text(encoding="utf-8"))
    (shown,) = [block.text for block in blocks(ROOT / "README.md") if block.kind == "toml"]
    for section, keys in tomllib.loads(shown).items():
        assert keys.items() <= whole[section].items()


def _documented(doc: str) -> Iterator[str]:
    """Names in the section on parameters of a NumPy docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}|\Z)", doc, re.S | re.M)
    for line in section.group(1).splitlines() if section else ():
        if line and not line.startswith(" "):
            yield from (name.strip().lstrip("*") for name in line.partition(" : ")[0].split(","))


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Names of the parameters of a function, or of the fields and the constructor of a class."""
    if isinstance(node, ast.ClassDef):
        names = {
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                names |= _parameters(each)
        return names
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {each.arg for each in every if each is not None}


def test_docstrings_name_parameters_that_exist() -> None:
    """A parameter that was renamed or removed must not stay in the docstring."""
    checked = 0
    for file in [*(ROOT / "plumed_cv").rglob("*.py"), *(ROOT / "python").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = set(_documented(ast.get_docstring(node) or ""))
                assert names <= _parameters(node), f"{file}: {node.name}"
                checked += len(names)
    assert checked > 500
