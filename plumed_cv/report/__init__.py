"""The report of a run: one HTML page that contains everything it needs and loads nothing.

Everything in the run directory is treated as text: the templates escape it, and the content
security policy of the page allows only the script of this package, identified by its hash.
"""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from plumed_cv import figures, workflow
from plumed_cv.common.extras import missing
from plumed_cv.common.files import write_text

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ModuleNotFoundError:
    raise missing("jinja2") from None

from plumed_cv.report import contents, facts, temperatures
from plumed_cv.report.contents import Run


def write(directory: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of a run, finished or not, and `localisation.xyz` in the same folder.

    For a run at several temperatures, this includes the pages of all of them, which the page links.

    Parameters
    ----------
    directory
        The run directory. Only the report in it changes.
    output
        The report; `report.html` in the run directory if None.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UserError
        If this is not the directory of a run, a file in it is damaged, or the report cannot be
        written.
    """
    directory = Path(directory)
    output = directory / "report.html" if output is None else Path(output)
    if workflow.is_series(directory):
        for _, place in workflow.iterate_runs(directory):
            if (place / "input.json").exists():
                write(place)
        write_text(
            output, _page("temperatures.html", temperatures.collect_facts(directory, output))
        )
        return output
    run = contents.read(directory)
    facts.write_localisation(run, output.with_name("localisation.xyz"))
    write_text(output, render(run))
    return output


def render(run: Run) -> str:
    """Return the page of a run as text."""
    return _page("page.html", facts.collect_facts(run))


def _page(template: str, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("plumed_cv.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    style, script = (_template(name) for name in ("page.css", "page.js"))
    colours = " ".join(f"--{name}: {colour};" for name, colour in figures.COLOURS.items())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **content,
        style=Markup(f":root {{ {colours} }}\n{style}"),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _template(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
