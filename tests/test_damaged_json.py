"""JSON files of a run that are damaged, or were written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.workflow.label import read_selection


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[1, 2]", "it is not an object of JSON"),
        ("\xff", "codec can't decode"),
    ],
)
def test_damaged_json_is_named_with_its_remedy(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"result\.json: is damaged \(.*{why}.*\); remove it and"):
        read_json(file)


def test_keys_that_a_json_file_does_not_have_are_named(tmp_path: Path) -> None:
    """Of the file, of an object in it, and of the file with other keys added."""
    file = tmp_path / "result.json"
    file.write_text('{"iterations": [{"cv": "cv-0"}]}')
    found = read_json(file, "do it again.")
    for content, key in (
        (found, "flux"),
        (found["iterations"][0], "kind"),
        (found | {"more": 1}, "flux"),
    ):
        with pytest.raises(UserError, match=rf"json: has no key '{key}', .*; do it again\."):
            _ = content[key]
    assert found.get("flux") is None
    assert found | {"more": 1} == {"iterations": [{"cv": "cv-0"}], "more": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda record: record.pop("segments"), "segments is missing"),
        (lambda record: record.update(candidates="all"), "candidates is missing or of another"),
        (lambda record: record["labels"][1].pop("weight"), "label 2 has no weight"),
        (lambda record: record["labels"].append(3), "label 3 has no name"),
    ],
)
def test_a_selection_that_was_written_by_hand(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    row = {"name": "segment-000000:1", "xi": 0.5, "weight": 1.0, "use": "correction"}
    record: dict[str, Any] = {"iteration": 1, "candidates": 5, "segments": [], "labels": [row] * 2}
    record = json.loads(json.dumps(record))
    file = tmp_path / "selection.json"
    file.write_text(json.dumps(record))
    assert read_selection(file, "demo/run") == record
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"selection\.json: {sentence}.*'plumed-cv label demo"):
        read_selection(file, "demo/run")
