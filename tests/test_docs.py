"""What the documentation shows is right: commands, inputs, links, sentences and numbers.

Python blocks are executed by test_library.py, files of plumed_inputs/ by plumed/test_inputs.py. The
site as a whole, with every link of it, is checked by `make docs`.
"""

import ast
import json
import re
import shlex
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plumed
import pytest
import torch
import typer.main
from ase.build import bulk

from plumed_cv import config
from plumed_cv.cli import app
from plumed_cv.cv import linear
from tests.conftest import MakePlumed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ACTIONS = sorted((ROOT / "cpp" / "actions").glob("*.cpp"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "plumed_inputs/README.md")]
PAGES += sorted(DOCS.rglob("*.md"))


def blocks(text: str) -> Iterator[str]:
    """Yield the blocks of code of a page: fenced, or indented by four after an empty line."""
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```\w*\n(.*?)^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.findall(r"\n\n((?:(?: {4}[^\n]*)?\n)+)", text):
        if indented.strip():
            yield "\n".join(line[4:] for line in indented.splitlines())


def all_blocks() -> Iterator[tuple[str, str]]:
    for page in [*PAGES, *ACTIONS]:
        for block in blocks(page.read_text(encoding="utf-8")):
            yield page.name, block


def check_command(line: str, complete: bool) -> None:
    """Parse a command line by typer, without running it; `complete`: no argument is left out."""
    words = shlex.split(re.split(r"\s+(?:2?>|\|)\s", line)[0], comments=True)[1:]
    group: Any = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert words[0] in ("--install-completion", "--show-completion", "--version", "--help")
        return
    assert words[0] in group.commands
    if words[1:] == ["--help"]:
        return
    command = group.commands[words[0]]
    try:
        command.make_context(words[0], words[1:], parent=group.context_class(group))
    except Exception as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise


def test_commands() -> None:
    shown = {
        (line, True)
        for _, block in all_blocks()
        for line in block.splitlines()
        if line.startswith("plumed-cv ") and "COMMAND" not in line
    }
    for page in PAGES:
        for line in re.findall(r"`(plumed-cv [^`]+)`", page.read_text(encoding="utf-8")):
            if "COMMAND" not in line and "..." not in line and "[" not in line:
                shown.add((line, False))
    assert len(shown) > 40
    for line, complete in sorted(shown):
        check_command(line, complete)


@pytest.mark.parametrize(
    "line", ["plumed-cv fly", "plumed-cv run a.toml --steps 3", "plumed-cv train md.dcd"]
)
def test_wrong_commands_are_seen(line: str) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such option|Missing|assert"):
        check_command(line, complete=True)


def example() -> dict[str, Any]:
    file = ROOT / "plumed_cv" / "examples" / "vacancy-fe" / "vacancy.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def test_inputs(tmp_path: Path) -> None:
    """A block with [system] and [engine] is a whole input; another one adds to the example's."""
    sections = "|".join(config.Config.model_fields)
    found = 0
    file = tmp_path / "input.toml"
    for _, block in all_blocks():
        if not re.match(rf"(?:#.*\n)*\[(?:{sections})\]", block):
            continue
        given = tomllib.loads(block)
        if not {"system", "engine"} <= given.keys():
            whole = example()
            if "file" in given.get("path", {}):
                del whole["system"]["initial"], whole["system"]["final"]
            if "engine" in given:
                whole["engine"] = {}
            for section, keys in given.items():
                whole[section] = whole.get(section, {}) | keys
            given = whole
        file.write_text(_toml(given), encoding="utf-8")
        config.load(file)
        found += 1
    assert found >= 10


def _toml(content: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, keys in content.items():
        lines.append(f"[{section}]")
        for name, value in keys.items():
            if isinstance(value, dict):
                value = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
                lines.append(f"{name} = {value}")
            else:
                lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)


LEFT_OUT = {  # by a fragment
    "ae": "AUTOENCODER MODEL=cv.safetensors",
    "phi": "TORSION ATOMS=5,7,9,15",
    "psi": "TORSION ATOMS=7,9,15,17",
}


class Two(torch.nn.Module):
    """Two numbers of anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum(), (x * x).sum()])


def test_plumed_inputs(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PLUMED reads every input of the pages and of the actions' comments."""
    crystal = bulk("Fe", cubic=True, a=2.8553) * (4, 4, 4)
    initial, final = crystal[1:], crystal[1:]
    final.positions[0] = crystal.positions[0]
    model = linear(initial.symbols, initial.cell.array, initial.positions, final.positions)
    (tmp_path / "shared").mkdir()
    found = 0
    for number, (page, block) in enumerate(all_blocks()):
        action = r"^(?:\w+: )?(?:AUTOENCODER|BABF|TORCH_CV|LOAD) (?:[A-Z]+=|\.\.\.)"
        if not re.search(action, block, re.MULTILINE):
            continue
        folder = tmp_path / f"{number}-{page}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        model.save(folder / "cv.safetensors")
        torch.jit.script(Two()).save("model.pt")
        nodes = "".join(f"{0.2 + i / 120} 0.0\n" for i in range(121))
        Path("fes.dat").write_text(f"#! FIELDS d A_k\n{nodes}")
        text = re.sub(r"FILE=\S*libplumed_cv_torch\.so", f"FILE={torch_plugin}", block)
        text = re.sub(r"LOAD FILE=\S*libplumed_cv\.so", "", text)  # is there already
        text = re.sub(r"^plumed-cv .*$", "", text, flags=re.MULTILINE)
        text = text.replace("DEVICE=cuda", "DEVICE=cpu")
        if "TORCH_CV" in text and str(torch_plugin) not in text:
            text = f"LOAD FILE={torch_plugin}\n{text}"
        for name, line in LEFT_OUT.items():
            if re.search(rf"\b{name}\b", text) and f"{name}:" not in text:
                text = f"{name}: {line}\n{text}"
        handle = make_plumed(300, "", units="")
        try:
            handle.cmd("readInputLines", text)
        except plumed.PlumedError as error:
            pytest.fail(f"{page}: {error}\n{text}")
        handle.finalize()
        found += 1
    assert found >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http:", "https:", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_pages_of_actions_have_all_keywords() -> None:
    from python.site_pages import action_page

    for source in ACTIONS:
        page = action_page(source)
        names = re.findall(r'keys\.add\w*\(\s*"\w+",\s*"(\w+)"', source.read_text())
        assert names
        assert names == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
        assert "## Examples" in page


def sentences() -> Iterator[str]:
    """Texts in the sources, without what is put into them."""
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


def test_numbers_are_those_of_the_data() -> None:
    measured = {
        (row[0], row[1]): row[3].split()[0] for row in rows(DOCS / "efficiency.md") if len(row) == 9
    }
    compared = [row for row in rows(DOCS / "comparison.md") if len(row) == 3][2:]
    assert len(compared) == 7
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

    of_seed_1 = [row for row in rows(ROOT / "README.md") if row[:2] == ["linear", "1"]]
    tutorial = [row for row in rows(DOCS / "tutorial-vacancy.md") if len(row) == 6][2:]
    assert tutorial == [row[2:8] for row in of_seed_1]
