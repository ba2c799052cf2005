"""Makes the pages of the site that come from the sources; mkdocs.yml names this hook.

The page of an action contains the PLUMEDOC comment of its C++ file and its registered keywords. A
page of the reference contains the docstrings of a module. The pages for contributors are at the top
level, and the example inputs in a folder of their own. A notebook is shown with its outputs.
Formulas become MathML, which browsers show without a script.
"""

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ACTIONS = {
    "action-autoencoder.md": "cpp/actions/Autoencoder.cpp",
    "action-babf.md": "cpp/actions/Babf.cpp",
    "action-torch-cv.md": "cpp/actions/TorchCv.cpp",
}
TOP_LEVEL = {
    "overview.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "inputs.md": "plumed_inputs/README.md",
}
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Links of the documentation to the sources that pages are made from lead to those pages.
PAGES = {source: page for page, source in (ACTIONS | TOP_LEVEL).items()}


def action_page(source: Path) -> str:
    """Return the page of the action in a C++ file, Markdown.

    Raises
    ------
    ValueError
        If the file has no PLUMEDOC comment or registers no keyword.
    """
    text = source.read_text()
    found = re.search(r"//\+PLUMEDOC \w+ (\w+)\n/\*\n(.*?)\*/\n//\+ENDPLUMEDOC", text, re.DOTALL)
    keywords = "\n".join(
        f"| `{name}` | {meaning} | {default} |" for name, meaning, default in _keywords(text)
    )
    if not found or not keywords:
        raise ValueError(f"{source}: has no PLUMEDOC comment, or no keywords")
    comment = re.sub(r"^###? ", "## ", found[2].strip(), flags=re.MULTILINE)
    comment = comment.replace("```plumed", "```text")
    added = re.findall(r'add_component\(\s*keys, "(\w+)",\s*((?:"[^"]*"\s*)+)', text)
    components = "\n".join(f"- `{name}`: {_text(meaning)}" for name, meaning in added)
    return (
        f"# {found[1]}\n\n{comment}\n\n## Keywords\n\n"
        f"| keyword | meaning | default |\n| --- | --- | --- |\n{keywords}\n\n"
        "Those that PLUMED gives to all actions of this kind come in addition.\n\n"
        f"Components:\n\n{components}\n"
    )


def _keywords(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, meaning and default of what registerKeywords adds, in its order."""
    start = r"(?:keys\.add(Flag)?\(|compat::add_(scalar)_input\(\s*keys,)"
    call = start + r'\s*((?:"[^"]*"|true|false|,|\s)+)\);'
    for flag, scalar, arguments in re.findall(call, text):
        strings = re.findall(r'(?:"[^"]*"\s*)+', arguments)
        words = [_text(string) for string in strings]
        if flag:
            yield words[0], words[1], "off"
        elif scalar:
            yield words[0], words[1], ""
        else:
            kind, name, *default, meaning = words
            required = "required" if kind == "compulsory" else ""
            yield name, meaning, f"`{default[0]}`" if default else required


def _text(literals: str) -> str:
    """Return neighbouring C++ string literals as one text."""
    return "".join(re.findall(r'"([^"]*)"', literals))


def inputs() -> str:
    """Return the files of plumed_inputs/, each under its name, Markdown."""
    files = sorted(file for file in (ROOT / "plumed_inputs").iterdir() if file.suffix != ".md")
    return "".join(f"\n## {file.name}\n\n```text\n{file.read_text()}```\n" for file in files)


def notebook_page(file: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook with its outputs, Markdown, and its pictures by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        said = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if picture := data.get("image/png"):
                name = f"{file.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![Output of the cell]({name})")
            else:
                said += "".join(output.get("text") or data.get("text/plain") or "").rstrip() + "\n"
        if said.strip():
            parts.append(f"```text\n{said.strip()}\n```")
    note = f"This page is a notebook: [{file.name}]({file.name})."
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([f"{title}\n\n{note}\n{rest}", *parts[1:]]) + "\n", pictures


def modules() -> list[str]:
    """Return the public modules of the package but the command line, dotted."""
    files = sorted((ROOT / "plumed_cv").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    public = [name.removesuffix(".__init__") for name in names if "examples" not in name]
    without_page = re.compile(r"plumed_cv(\.cli(\..*)?|\.terminal)?")
    return [name for name in public if not without_page.fullmatch(name)]


def module_page(name: str) -> str:
    """Return the page of a module's docstrings, Markdown for mkdocstrings."""
    return f"# {name}\n\n::: {name}\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference last in the navigation, after pages that mkdocs.yml does not name."""
    assert config.nav is not None
    named = str(config.nav)
    more = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named]
    if more:
        config.nav.insert(-1, {"More": more})
    config.nav[-1]["Development"].append({"Reference": [{n: f"api/{n}.md"} for n in modules()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {page: action_page(ROOT / source) for page, source in ACTIONS.items()}
    made |= {page: (ROOT / source).read_text() for page, source in TOP_LEVEL.items()}
    made["inputs.md"] += inputs()
    made |= {f"api/{name}.md": module_page(name) for name in modules()}
    for notebook in NOTEBOOKS:
        made[f"notebooks/{notebook.stem}.md"], pictures = notebook_page(notebook)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    citation = ROOT / "CITATION.cff"  # which README.md links to
    files.append(File.generated(config, citation.name, abs_src_path=str(citation)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links of the repository by links to the pages of the site."""
    top_level = page.file.src_path in TOP_LEVEL

    def led(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        if target.startswith("notebooks/") and target.endswith(".ipynb"):
            return f"[{words}]({target.removesuffix('.ipynb')}.md"
        if not top_level:
            source = target.removeprefix("../")
            return f"[{words}]({PAGES[source]}" if source in PAGES and source != target else link[0]
        if words == target.removeprefix("../") and target.endswith(".md"):
            words = (ROOT / words).read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        return f"[{words}]({PAGES.get(target, re.sub(r'^(../)?docs/', '', target))}"

    return re.sub(r"\[([^\]]*)\]\(([^)#]+)", led, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert formulas to MathML."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula[1] == "div" else "inline"
        drawing: str = convert(html.unescape(formula[2])[2:-2].strip(), display=display)
        if "\\" in drawing:
            raise PluginError(f"{page.file.src_path}: cannot be drawn: {formula[2]}")
        wide = '<div style="overflow-x: auto; padding: 0.4em 0">'  # on a phone
        return f"{wide}{drawing}</div>" if display == "block" else drawing

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', drawn, content, flags=re.DOTALL)
