"""The terminal: output streams, exit statuses, completion, and the page on it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import typer.main

from plumed_cv.cli import app
from tests import vacancy
from tests.vacancy import command

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"

INPUT = f"""{vacancy.SYSTEM}{vacancy.QUICK}
[sampling]
steps = 8000
segments = 8
timestep_fs = 2.0
[iteration]
minimum = 1
maximum = 1
"""


def test_every_command_is_documented() -> None:
    words = PAGE.read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    names = set(getattr(group, "commands", {}))
    assert names
    assert names == set(re.findall(r"^\| `plumed-cv (\w+)", words, flags=re.MULTILINE))


def test_no_line_of_the_help_is_cut() -> None:
    """Not on a terminal with the usual 80 columns, where typer cuts long first sentences."""
    lines = command("--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  discover ") for line in lines)
    assert not [line for line in lines if line.startswith("  ") and line.endswith("...")]


def test_examples_have_lines_of_their_own() -> None:
    lines = command("campaign", "--help").stdout.splitlines()
    assert "  Examples: plumed-cv campaign fe-vacancy --harmonic" in lines
    assert "            plumed-cv campaign fe-vacancy --error 0.1" in lines


def test_exit_statuses_are_documented_and_kept(plugin: Path, tmp_path: Path) -> None:
    assert "Exit status" in command("--help").stdout
    mistake = command("run", tmp_path / "none.toml")
    assert (mistake.returncode, mistake.stdout) == (1, "")
    assert "\x1b" not in mistake.stderr  # no colours where nobody looks
    assert command("report", tmp_path).returncode == 1
    assert command("report", "--nonsense").returncode == 2
    doctor = command("doctor", "--json")
    findings = json.loads(doctor.stdout)
    needed = all(finding["ok"] for finding in findings if finding["required"])
    assert doctor.returncode == (0 if needed else 1)


def on_a_terminal(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output, and the output on a terminal as standard error."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "plumed_cv.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"} | environment,
    )
    os.close(follower)
    sent = b""
    try:
        while piece := os.read(leader, 1 << 16):
            sent += piece
    except OSError:  # as Linux says that nobody is left who writes
        pass
    os.close(leader)
    return process.wait(), process.communicate()[0], sent.decode()


def test_an_error_is_red_on_a_terminal(tmp_path: Path) -> None:
    for environment, red in (({}, True), ({"NO_COLOR": "1"}, False)):
        status, out, said = on_a_terminal("run", tmp_path / "none.toml", **environment)
        assert (status, out) == (1, "")
        assert re.sub(r"\x1b\[[\d;]*m", "", said).startswith("plumed-cv: ")
        assert "does not exist" in said
        assert ("\x1b[31m" in said) == red


def test_a_terminal_shows_the_time_that_is_left_and_the_barrier_so_far(
    plugin: Path, tmp_path: Path
) -> None:
    text = INPUT.replace("steps = 8000\nsegments = 8", "steps = 20_000\nsegments = 20")
    status, out, said = on_a_terminal("run", vacancy.write(tmp_path, text), "--json")
    assert status == 0, said
    assert json.loads(out)["barrier_eV"] > 0
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said)
    assert re.search(r"\d:\d\d:\d\d left", shown)
    assert re.search(r"barrier \d\.\d+ ± \d\.\d+", shown)


def test_names_of_examples_are_completed() -> None:
    asked = {"COMP_WORDS": "plumed-cv init vac", "COMP_CWORD": "2"}
    done = subprocess.run(
        [Path(sys.executable).with_name("plumed-cv")],  # completion goes by the program's name
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | asked | {"_PLUMED_CV_COMPLETE": "complete_bash"},
    )
    assert "vacancy-fe" in done.stdout.split()


def test_interrupted_it_says_how_to_go_on_and_then_does(plugin: Path, tmp_path: Path) -> None:
    file = vacancy.write(tmp_path, INPUT.replace("steps = 8000", "steps = 20_000"))
    line = [sys.executable, "-m", "plumed_cv.cli", "run", str(file)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 300
    while not list(tmp_path.glob("run/iteration-1/segment-*")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of the group
    out, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert out == ""
    assert said.splitlines()[-1].endswith("interrupted; the same command continues from here.")
    assert "Traceback" not in said
    page = command("report", tmp_path / "run")
    assert page.stdout.strip() == str(tmp_path / "run" / "report.html")
    assert "This run has not ended" in (tmp_path / "run" / "report.html").read_text()
    done = command("run", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["md_steps"] == 20_000  # one document and nothing else
    assert not re.search(r"[\x1b\r]", done.stderr)
    assert "This run has not ended" not in (tmp_path / "run" / "report.html").read_text()
