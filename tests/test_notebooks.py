"""The notebooks of docs/notebooks: executed from the first cell to the last, as a reader would."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs(file: Path, plugin: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, timeout=1000, resources=folder).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    # No warnings for the reader.
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


def test_the_notebooks_are_committed_with_their_outputs() -> None:
    assert len(NOTEBOOKS) == 2
    for file in NOTEBOOKS:
        cells = nbformat.read(file, as_version=4).cells
        codes = [cell for cell in cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
        assert file.stat().st_size < 400_000
        assert "/tmp/" not in file.read_text(encoding="utf-8")
