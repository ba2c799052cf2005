"""The report of a run: its content, the order of it, and its display in a browser."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms

from plumed_cv import cv, freeenergy, input_file, report, terminal, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.numbers import with_error
from plumed_cv.report import contents
from tests import vacancy
from tests.browser import Browser

INPUT = f"""{vacancy.SYSTEM}
[path]
images = 7
fmax_eV_A = 0.02
structures = 500
[sampling]
steps = 8000
segments = 8
timestep_fs = 2.0
deviation_limit_A = 1.6
[iteration]
maximum = 2
tolerance = 1e-9
seed = 3
"""

# What a page must not run, wherever in a run directory it stands.
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def run(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vacancy in 53 atoms of iron, two iterations, too short to converge."""
    folder = tmp_path_factory.mktemp("report")
    workflow.run(input_file.load(vacancy.write(folder, INPUT)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return report.write(run)


class Page(HTMLParser):
    """The elements of a page and the text of some of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._hidden = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.text.append(" ".join(data.split()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text)


def test_page_has_all_that_is_promised(run: Path, page: Path) -> None:
    parsed, result = Page(page), json.loads((run / "result.json").read_text())
    words = parsed.words
    assert with_error(result["barrier_eV"], result["barrier_error_eV"]) in words
    assert with_error(result["flux_barrier_eV"], result["flux_barrier_error_eV"]) in words
    charts = [svg for svg in parsed.of("svg") if svg["class"] == "chart"]
    # Profiles, steps, histogram, history, path, similarity, variance, losses, distance.
    assert len(charts) == 9
    titles = ("Free energy profile", "Quality of the sampling", "The collective variable",
              "Which atoms take part", "Cost", "How to continue", "Inputs, versions")  # fmt: skip
    assert all(title in words for title in titles)
    assert "AUTOENCODER MODEL=cv.safetensors" in words
    assert "temperature_K = 300.0" in words
    assert "structures = 500" in words
    start = json.loads((run / "provenance.json").read_text())[-1]
    assert start["versions"]["PLUMED"] in words
    assert json.loads((run / "input.json").read_text())["system"]["initial"] in words
    downloads = {link["download"] for link in parsed.of("a") if "download" in link}
    assert downloads == {"fes.dat", "result.json", "plumed.dat", "localisation.xyz"}
    ends = ase.io.read(run / "localisation.xyz", index=":")
    assert len(ends) == 2
    assert isinstance(ends[0], Atoms)
    amplitude = ends[0].arrays["var_D"]
    assert amplitude.shape == (27,)  # the atoms of the CV
    assert amplitude.argmax() == 0  # the atom that hops


def test_page_is_accessible_and_stands_alone(page: Path) -> None:
    parsed = Page(page)
    assert len(parsed.of("h1")) == 1
    assert parsed.of("html")[0]["lang"] == "en"
    for svg in parsed.of("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"] or "") > 30
    assert len(parsed.of("caption")) == len(parsed.of("table"))
    assert all("scope" in cell for cell in parsed.of("th"))
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert [name for name, number in Counter(names).items() if number > 1] == []
    for _, attributes in parsed.elements:
        for key in ("href", "src", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    inner = {link["href"] for link in parsed.of("a") if (link["href"] or "").startswith("#")}
    assert {str(name)[1:] for name in inner} <= set(names)


def test_charts_have_the_colours_of_the_page(page: Path) -> None:
    """Colours have names, because explicit colours would not change in the dark scheme."""
    drawn = re.findall(r'<svg class="chart".*?</svg>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(drawn) == 9
    for svg in drawn:
        assert "var(--ink)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_what_is_wrong_comes_first(run: Path, page: Path, tmp_path: Path) -> None:
    def first_words(directory: Path) -> str:
        words = Page(report.write(directory)).words
        return words[words.index(" K", words.index("Free energy barrier of")) :][:400]

    result = json.loads((run / "result.json").read_text())
    assert first_words(run).startswith(
        f" K Not converged . The procedure stopped after 2 iterations: {result['stopped_by']}"
    )
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    (copy / "iteration-2" / "result.json").unlink()
    for segment in sorted((copy / "iteration-2").glob("segment-*"))[3:]:
        shutil.rmtree(segment)
    words = first_words(copy)
    assert words.startswith(" K This run has not ended")
    assert "Iteration 2 has sampled 3,000 of 8,000 steps" in words
    assert "preliminary results of iteration 1" in words
    shutil.rmtree(copy / "iteration-2")
    assert "the next one has not sampled anything yet" in first_words(copy)
    shutil.rmtree(copy / "iteration-1")
    assert "Nothing has been sampled yet" in first_words(copy)
    (copy / "path.xyz").unlink()  # a molecule has none
    assert "Nothing has been sampled yet" in first_words(copy)
    for file in (*copy.glob("cv*"), *copy.glob("training*")):
        file.unlink()
    assert "Nothing has been sampled yet" in first_words(copy)
    (copy / "provenance.json").write_text("[")  # no result rests on it
    assert "Nothing has been sampled yet" in first_words(copy)


def test_damage_and_foreign_directories_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the directory of a run"):
        report.write(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "iteration-1" / "segment-000001" / "babf.state").write_text("#! FIELDS")
    with pytest.raises(UserError, match=r"segment-000001"):
        report.write(copy)


def test_report_of_a_run_that_may_not_be_written_to(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    written = report.write(run, tmp_path / "page.html")
    assert written == tmp_path / "page.html"
    assert (tmp_path / "localisation.xyz").exists()
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_terminal_and_page_say_the_same(
    run: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((run / "result.json").read_text())
    terminal.print_iterations(result)
    printed, words = capsys.readouterr().out, Page(page).words
    last = printed.strip().splitlines()[-1]
    assert last.startswith("At 300 K: flux barrier ")
    assert last.endswith(f"(NOT converged: {result['stopped_by']}). {result['advice']}")
    assert result["advice"] in words
    failed = [check for check in result["checks"] if check["passed"] is False]
    assert failed
    for check in failed:
        assert f"Attention: {check['sentence']}" in printed
        assert f"Attention: {check['sentence']}" in words
    assert f"from iteration {result['answer_iteration']} (" in words
    assert f"{result['answer_iteration']}*" in printed
    assert "No guard was set" not in words


def test_page_of_a_run_of_an_earlier_version(run: Path, tmp_path: Path) -> None:
    """A run whose results lack all keys of the checks: they are computed, nothing is claimed."""
    copy = tmp_path / "old"
    shutil.copytree(run, copy)
    new = ("checks", "advice", "crossings", "first_half", "second_half", "flanks", "similarity_",
           "answer_")  # fmt: skip

    def old(result: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in result.items() if not key.startswith(new)}

    for n in (1, 2):
        file = copy / f"iteration-{n}" / "result.json"
        file.write_text(json.dumps(old(json.loads(file.read_text()))))
    result = json.loads((copy / "result.json").read_text())
    parts = [old(part) for part in result["iterations"]]
    claim = {"converged": True, "iterations": parts, "stopped_by": "equivalent CVs (Eq. 17)"}
    (copy / "result.json").write_text(json.dumps(old(result) | claim))
    words = Page(report.write(copy)).words
    assert "Not converged ." in words
    for check in result["checks"]:
        if check["name"] != "collective variable":  # whose noise was not kept
            assert check["sentence"] in words


STEPS = [
    {
        **{"reactant_xi": 0.0, "surface": 0.25, "product_xi": 0.5},
        **{"flux_barrier_eV": 0.41, "flux_barrier_error_eV": 0.01},
        **{"reverse_flux_barrier_eV": 0.40, "reverse_flux_barrier_error_eV": 0.02},
        **{"rate_per_s": 1.2e8, "rate_error_per_s": 3e7, "reverse_rate_per_s": 2.2e8},
    },
    {"reactant_xi": 0.5, "surface": 0.75, "product_xi": 1.0, "flux_barrier_eV": None},
]


def test_steps_are_shown_where_there_are_several(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "steps"
    shutil.copytree(run, copy)
    more = {"steps": STEPS, "populations": [0.5, 0.1, 0.4]}
    result = json.loads((copy / "result.json").read_text()) | more
    (copy / "result.json").write_text(json.dumps(result))
    answer = copy / f"iteration-{result['answer_iteration']}" / "result.json"
    answer.write_text(json.dumps(json.loads(answer.read_text()) | more))
    words = Page(report.write(copy)).words
    for cell in ("0.410 ± 0.010", "0.400 ± 0.020", "(1.20 ± 0.30) × 10⁸", "Steps of the process"):
        assert cell in words
    assert "dividing surfaces" in words
    terminal.print_iterations(result)
    printed = capsys.readouterr().out
    assert "0.410 ± 0.010" in printed
    assert "(1.20 ± 0.30) × 10⁸ 1/s" in printed
    assert "populations of the basins: 50 %, 10 %, 40 %" in printed
    # They are unknown if the grid ends in the basin of the product.
    unknown = {"populations": [None, None, None]}
    terminal.print_iterations(result | unknown)
    assert "populations of the basins" not in capsys.readouterr().out
    answer.write_text(json.dumps(json.loads(answer.read_text()) | unknown))
    (copy / "result.json").write_text(json.dumps(result | unknown))
    assert "Steps of the process" in Page(report.write(copy)).words


def test_convergence_ends_at_the_answer(run: Path) -> None:
    found = contents.read(run)
    result = json.loads((run / "result.json").read_text())
    steps, estimates = found.parts[-1].convergence()
    assert steps[-1] == 8000
    assert np.all(np.diff(steps) > 0)
    of_itself = result["estimators"]  # without the snapshots of earlier iterations
    own = of_itself.get(result["estimator"].removesuffix(" in all iterations"), result)
    assert estimates[-1].value == pytest.approx(own["flux_barrier_eV"])
    assert found.parts[0].steps + found.parts[1].steps == result["md_steps"]
    for (_, curve), row in zip(found.similarities(), result["iterations"], strict=True):
        assert curve.mean() == pytest.approx(row["similarity"])


def test_several_walkers_converge_together() -> None:
    """The first so many steps are the first parts of every walker."""
    rng = np.random.default_rng(0)
    grid, states, series = freeenergy.Grid(-0.2, 1.2, 35), [], []
    for _ in range(2):
        estimator = freeenergy.Estimator(grid, 0.025)
        run = [estimator.state]
        for _ in range(8):
            wells = rng.integers(2, size=170) + rng.normal(scale=0.07, size=170)
            series.append(rng.permutation([*wells, *rng.uniform(-0.2, 1.2, 30)]))
            for xi in series[-1]:
                estimator.learn(xi)
            run.append(estimator.state)
        states += freeenergy.split_into_blocks(run)[1:]
    records = [{"n_steps": 200, "stopped": False}] * 16
    ones = [np.ones(200)] * 16
    none: Any = None
    columns = {"ae.node-0": series, "ae.gradnorm": ones, "ae.invmass": ones}
    found = workflow.Sampled(states, None, columns)
    both = contents.Part(1, none, None, None, found, records, [8, 8])
    steps, estimates = both.convergence()
    assert list(steps) == [1200, 1600, 2000, 2400, 2800, 3200]
    first = [*states[:3], *states[8:11]]
    known = freeenergy.estimate_flux(
        first, [*series[:3], *series[8:11]], ones[:6], ones[:6]
    ).barrier
    assert estimates[0].value == pytest.approx(known.value)


def hostile_copy(run: Path, folder: Path) -> Path:
    """A run whose every string is an attack, its directory's name too."""
    copy = folder / "<img src=x onerror=window.hacked=1>"
    shutil.copytree(run, copy)

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {HOSTILE if key == "versions" else k: poisoned(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        keep = ("cv", "time", "prior", "thermostat", "scheduler", "criterion", "start",
                "atom_deviation_limit_A", "model_deviation_limit")  # fmt: skip
        return HOSTILE if isinstance(value, str) and key not in keep else value

    for file in (copy / "provenance.json", copy / "input.json", copy / "result.json",
                 *copy.glob("iteration-*/result.json")):  # fmt: skip
        file.write_text(json.dumps(poisoned(json.loads(file.read_text()))))
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"converged": True, "note": HOSTILE}))
    (copy / "plumed.dat").write_text(HOSTILE)
    for file in copy.glob("cv*.safetensors"):
        replace(cv.CollectiveVariable.load(file), kind="<img src=x>").save(file)
    return copy


def test_nothing_in_a_run_directory_becomes_script(
    run: Path, tmp_path: Path, browser: Browser
) -> None:
    written = report.write(hostile_copy(run, tmp_path))
    text = written.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("<script") == 2
    assert "<img" not in text
    assert text.count("window.hacked") > 5  # it is there, as text
    browser.open(written, width=1000)
    assert browser.evaluate("window.hacked") is None
    assert browser.complaints == []
    # Were something forgotten, the page's policy would still not let it run.
    assert browser.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
        " document.body.append(s); return window.hacked === undefined; })()"
    )
    assert any("Content Security Policy" in line for line in browser.complaints)


SCHEMES = {"light": (1200, False), "dark": (1200, True), "phone": (390, False)}

# Contrast of two colours as WCAG 2 defines it.
CONTRAST = """
(() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement("canvas").getContext("2d");
  const luminance = (name) => {
    canvas.fillStyle = style.getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
      const value = byte / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  };
  const pairs = [["--ink", "--surface"], ["--muted", "--surface"], ["--muted", "--page"],
    ["--last", "--surface"], ["--good", "--good-back"], ["--bad", "--bad-back"]];
  for (const k of [1, 2, 3, 4]) pairs.push([`--earlier-${k}`, "--surface"]);
  return Object.fromEntries(pairs.map(([a, b]) => [`${a} ${b}`, contrast(a, b)]));
})()
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_a_browser(scheme: str, page: Path, browser: Browser, tmp_path: Path) -> None:
    width, dark = SCHEMES[scheme]
    browser.open(page, width=width, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [page.absolute().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    small = browser.evaluate(
        "[...document.querySelectorAll('svg.chart text')]"
        ".filter(t => t.getBoundingClientRect().height < 7).length"
    )
    assert small == 0  # pixels: what is lower nobody reads
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(number) for number in re.findall(r"\d+", background)])
    assert brightness < 60 if dark else brightness > 200
    contrasts = browser.evaluate(CONTRAST)
    assert min(contrasts.values()) >= 4.5, contrasts
    browser.screenshot(tmp_path / f"{scheme}.png")
    assert (tmp_path / f"{scheme}.png").stat().st_size > 100_000


def test_atoms_turn_and_move(page: Path, browser: Browser) -> None:
    browser.open(page, width=1000)
    look = "document.getElementById('scene').toDataURL()"
    pictures = [browser.evaluate(look)]
    box = browser.evaluate(
        "(() => { const c = document.getElementById('scene'); c.scrollIntoView();"
        " const b = c.getBoundingClientRect(); return [b.x, b.y, b.width]; })()"
    )
    x, y = box[0] + 0.5 * box[2], box[1] + 0.5 * box[2]
    browser.drag((x, y), (x + 40, y + 25))
    pictures.append(browser.evaluate(look))
    browser.evaluate(
        "document.getElementById('scene').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowLeft'}))"
    )
    pictures.append(browser.evaluate(look))
    browser.evaluate(
        "(() => { const s = document.getElementById('scene-xi'); s.value = '10';"
        " s.dispatchEvent(new Event('input')); })()"
    )
    pictures.append(browser.evaluate(look))
    assert len(set(pictures)) == 4
    assert browser.evaluate("document.getElementById('scene-value').textContent") == "ξ = 0.50"


def test_plumed_dat_is_copied(run: Path, page: Path, browser: Browser) -> None:
    browser.open(page, width=1000)
    browser.send("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    browser.evaluate("document.querySelector('[data-copy=plumed-dat]').click()")
    copied = browser.evaluate(
        "new Promise(done => setTimeout(() => done(navigator.clipboard.readText()), 200))"
    )
    assert copied.strip() == (run / "plumed.dat").read_text().strip()


def test_on_paper(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(page, width=1000, dark=True)
    browser.print(tmp_path / "page.pdf")
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 9
    browser.send("Emulation.setEmulatedMedia", media="print", features=[])
    shown = browser.evaluate(
        "['nav', 'canvas', 'button', '.stills svg'].map("
        "s => document.querySelector(s).getClientRects().length > 0)"
    )
    assert shown == [False, False, False, True]
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"  # whatever the screen's scheme


def test_without_script_the_still_views_are_there(page: Path, browser: Browser) -> None:
    browser.open(page, width=1000, script=False)
    document = browser.send("DOM.getDocument")["root"]["nodeId"]

    def visible(selector: str) -> bool:
        node = browser.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        try:
            browser.send("DOM.getBoxModel", nodeId=node)
        except AssertionError:  # no box: it is not shown
            return False
        return True

    assert visible(".stills svg")
    assert not visible("canvas")
    assert not visible("button")
