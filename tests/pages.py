"""Blocks of code and commands of the documentation, and the marks of those not run.

A command that no test can run says so in its page, in a comment that readers do not see:

    <!-- not run: `command`: why -->

holds for all lines, of any page, that begin with the command.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import typer.main
from ase import Atoms

from plumed_cv.cli import app
from plumed_cv.input_file import Config
from plumed_cv.structures import held_atoms

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ACTIONS = [  # the files with a page of PLUMED's manual
    file
    for file in sorted((ROOT / "cpp" / "actions").glob("*.cpp"))
    if "//+PLUMEDOC" in file.read_text(encoding="utf-8")
]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "plumed_inputs/README.md")]
PAGES += sorted(DOCS.rglob("*.md"))

_SECTIONS = "|".join(Config.model_fields)
_ACTION = r"^(?:\w+: )?(?:AUTOENCODER|BABF|TORCH_CV|LOAD) (?:[A-Z]+=|\.\.\.)"
_PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:plumed-cv|python|make|git|pip|dask|sbatch|cmake|sh)\s"
_KINDS = {  # by their first line, or any line
    "toml": rf"\A(?:#.*\n)*(?:\[(?:{_SECTIONS})\]|\w+ = )",
    "plumed": rf"(?m){_ACTION}",
    "shell": rf"\A{_PROGRAM}",
    "python": r"\A(?:from|import|model)\b",
}


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes
    ----------
    page
        The page.
    text
        What stands in it.
    kind
        toml, plumed, shell or python; "text" for one that is fenced as such and none of these.
    """

    page: Path
    text: str
    kind: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of code of a page in their order: fenced, or indented by four."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".cpp":  # only what PLUMED's manual has of it
        text = text.partition("//+PLUMEDOC")[2].partition("//+ENDPLUMEDOC")[0]
    fenced = r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```"
    indented = r"(?<=\n\n)(?P<indented> {4}[^\n]*\n(?:(?: {4}[^\n]*)?\n)*)"
    for found in re.finditer(f"{fenced}|{indented}", text, re.MULTILINE | re.DOTALL):
        code = found["fenced"] or re.sub(r"^ {4}", "", found["indented"], flags=re.MULTILINE)
        code = code.strip("\n") + "\n"
        kinds = [kind for kind, pattern in _KINDS.items() if re.search(pattern, code)]
        if found["language"] == "python":  # `result = ...` looks like TOML
            kinds = ["python"]
        yield Block(page, code, kinds[0] if kinds else found["language"] or "unknown")


def lines(block: Block) -> list[str]:
    """The commands of a block without comments; a continued command is one line."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    return [line for line in re.split(r"\s+#.*\n|\n", joined) if line]


def execute_python(page: Path, first: int | None = None) -> dict[str, Any]:
    """Run the Python blocks of a page, or the first of them; return their variables."""
    found: dict[str, Any] = {}
    for block in [block for block in blocks(page) if block.kind == "python"][:first]:
        exec(compile(block.text, page.name, "exec"), found)
    return found


def check_end_states(page: Path, folder: Path, expected: Sequence[Atoms]) -> None:
    """Compare the end states that the Python block of a page writes with those of its script."""
    assert [block.kind for block in blocks(page)].count("python") == 1
    with contextlib.chdir(folder):
        execute_python(page)
    for name, state in zip(("initial", "final"), expected, strict=True):
        found = ase.io.read(folder / f"{name}.xyz")
        assert isinstance(found, Atoms)
        np.testing.assert_allclose(found.positions, state.positions, atol=1e-7)
        periodic = state.pbc
        np.testing.assert_array_equal(found.pbc, periodic)
        np.testing.assert_allclose(
            found.cell.array[periodic], state.cell.array[periodic], atol=1e-7
        )
        np.testing.assert_array_equal(held_atoms(found), held_atoms(state))


def check_numbers(page: Path, printed: str, least: int) -> None:
    """Compare a page with what its script prints: at least so many numbers, all on the page."""
    numbers = re.findall(r"\d+\.\d+", printed)
    text = page.read_text(encoding="utf-8")
    assert len(numbers) >= least
    assert [number for number in numbers if number not in text] == []


def all_blocks() -> Iterator[Block]:
    """Yield the blocks of all pages, and of the manuals of the actions."""
    for page in [*PAGES, *ACTIONS]:
        yield from blocks(page)


def quoted(page: Path) -> list[str]:
    """The commands within the text of a page that can be typed as they stand."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"`((?:plumed-cv|python (?:-m )?python)\b[^`]+)`", text)
    lines = [re.sub(r"\s+", " ", line) for line in found]
    return [line for line in lines if not re.search(r"\b[A-Z]+\b(?!=)|\[|\.\.\.", line)]


def group() -> Any:
    """The command line as an object of the library typer."""
    return typer.main.get_command(app)


def examples() -> list[str]:
    """The commands that `plumed-cv COMMAND --help` shows."""
    helps = "\n".join(command.help or "" for command in group().commands.values())
    return [
        line.strip() for line in re.findall(r"(?:: |^ {10})((?:plumed-cv|echo) .+)", helps, re.M)
    ]


def left_out() -> dict[str, str]:
    """The commands that are not run: the beginning of the line, and the reason."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command, why in re.findall(r"<!-- not run: `([^`]+)`: (.+?) -->", text, re.DOTALL):
            found[command] = re.sub(r"\s+", " ", why)
    return found
