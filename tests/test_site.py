"""The documentation as a site, opened from a disk in a real browser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import Browser

ROOT = Path(__file__).parents[1]

SEARCH = """
(async () => {
  const query = document.querySelector("[data-md-component=search-query]");
  query.focus();
  query.value = "Umbrella sampling";
  query.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
  for (let wait = 0; wait < 1200; wait++) {
    const found = document.querySelectorAll(".md-search-result__link");
    if (found.length) return [...found].map((link) => link.href);
    await new Promise((done) => setTimeout(done, 100));
  }
  return [];
})()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    line = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_search_needs_no_server_and_no_network(site: Path, browser: Browser) -> None:
    browser.open(site / "theory.html", width=1200)
    found = browser.evaluate(SEARCH)
    assert (site / "comparison.html").as_uri() in found
    assert (site / "references.html").as_uri() in found
    assert browser.complaints == []
    assert {request.split(":", 1)[0] for request in browser.requests} <= {"file", "data"}
