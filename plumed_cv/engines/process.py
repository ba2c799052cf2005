"""Other processes: Python processes that contain the library of an engine, and programs.

The library of an engine, PLUMED and the user's potential may end their process, and if Python's
torch is in the same process, PLUMED cannot evaluate models by libtorch. Dynamics therefore runs in
a process of its own. This module starts it, sends requests and ends it. It never imports torch
itself.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from plumed_cv.common.errors import UserError
from plumed_cv.engines.plumed_input import plumed_sentence

PROGRESS_INTERVAL_S = 0.2

_PIECES_KEPT = 2000
# SIGHUP, SIGKILL and SIGTERM: no process ends itself by these. SIGKILL comes if memory is short.
_FROM_OUTSIDE = (1, 9, 15)
_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies
if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None)  # loaded here, because a lock may be held between fork and exec


class KilledError(UserError):
    """Another program or the system ended the process of an engine: no fault of a structure."""


class Worker(Protocol):
    """Object in the other process: made there from picklable arguments, called by method names."""

    def step(self) -> int:
        """Return the number of completed steps of the present run; called by another thread."""


class Child:
    """A Python process with one `Worker`, and the pipe to it; started at the first request.

    Parameters
    ----------
    worker
        Class of the worker.
    *arguments
        Arguments with which it is made in the other process.
    """

    def __init__(self, worker: type[Worker], *arguments: Any) -> None:
        self._worker, self._arguments = worker, arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process; None if it has not been started or has ended."""
        return None if self._process is None else self._process.pid

    def ask(
        self, method: str, *arguments: Any, progress: Callable[[int], None] | None = None
    ) -> Any:
        """Call a method of the worker and wait for its answer.

        Parameters
        ----------
        method
            Name of the worker's method.
        arguments
            Arguments of the method.
        progress
            Called with the worker's `step`, a few times a second.

        Raises
        ------
        UserError
            If the worker or its construction raises one, or if its process ends.
        """
        try:
            if self._process is None:
                self._start()
                self._answer("", self._arguments)
            return self._answer(method, arguments, progress)
        except BaseException:
            # Whatever the process was doing, the next request starts a new one.
            self.close()
            raise

    def close(self) -> None:
        """End the process; the next request starts a new one."""
        if self._process is None:
            return
        self._connection.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()
        self._process = None

    def _start(self) -> None:
        _check_system()
        # multiprocessing's own start would import the parent's main module and everything that it
        # imports.
        self._connection, theirs = multiprocessing.Pipe()
        # The engine, PLUMED and MPI write their last messages there.
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment.setdefault("OMP_NUM_THREADS", "1")
        self._process = subprocess.Popen(
            [
                # -P: do not import a folder plumed_cv of the working directory.
                *(sys.executable, "-P", "-m", "plumed_cv.engines.process"),
                *(str(theirs.fileno()), self._worker.__module__, self._worker.__name__),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        theirs.close()

    def _answer(
        self,
        method: str,
        arguments: tuple[Any, ...],
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        try:
            self._connection.send((method, arguments, progress is not None))
            while True:
                kind, answer = self._connection.recv()
                if kind == "done":
                    return answer
                if kind == "progress":
                    if progress is not None:
                        progress(answer)
                elif kind == "user error":
                    raise UserError(answer)
                else:
                    raise RuntimeError(f"in the process of {self._worker.__name__}:\n{answer}")
        except (EOFError, ConnectionError):
            raise self._obituary() from None

    def _obituary(self) -> UserError:
        assert self._process is not None
        code = self._process.wait(timeout=10)
        self._words.seek(0)
        words = self._words.read().decode(errors="replace")
        # An error of PLUMED inside LAMMPS's own fix plumed ends the process.
        if "PLMD" in words or "+++ PLUMED error" in words:
            return UserError(plumed_sentence(words))
        lines = [line.strip() for line in words.splitlines() if not line.startswith("+++")]
        last = next((line for line in reversed(lines) if line), "")
        kind = KilledError if -code in _FROM_OUTSIDE else UserError
        return kind(
            f"the process of the engine was ended {how_it_ended(code)}"
            + (f": {last}" if last else "")
        )


def how_it_ended(code: int) -> str:
    """Describe an exit status: a number, or the signal that ended a process.

    A program may be a script that starts another program and passes on its signal n as 128 + n (the
    shell) or 256 - n (Python).
    """
    known = {int(number): number.name for number in signal.Signals}
    if code < 0:
        return f"by signal {-code} ({known.get(-code, 'unknown')})"
    for number in (code - 128, 256 - code):
        if code > 128 and number in known:
            return f"with status {code}, as after signal {number} ({known[number]})"
    return f"with status {code}"


def run_program(
    command: Sequence[str | Path],
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    given: str = "",
    heard: Callable[[str], None] | None = None,
) -> tuple[int, str]:
    """Run a program; return its exit status and its output, or only the end if it is heard.

    Parameters
    ----------
    command
        The program and its arguments.
    directory
        Its working directory.
    environment
        Environment variables, in addition to those of this process.
    given
        Its standard input.
    heard
        Called with each piece of the output. An exception in it ends the program.

    Raises
    ------
    UserError
        If the program cannot be started.
    """
    _check_system()
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as standard_input:
        standard_input.write(given.encode())
        standard_input.seek(0)
        try:
            process = subprocess.Popen(
                words,
                cwd=directory,
                env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})},
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # The parent handles an interrupt at the keyboard.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise UserError(f"{words[0]}: cannot be started: {error.strerror}") from None
    assert process.stdout is not None
    said = []
    try:
        while piece := os.read(process.stdout.fileno(), 65536):
            said.append(piece.decode(errors="replace"))
            if heard is not None:
                heard(said[-1])
                if len(said) > _PIECES_KEPT:  # a long run prints much about its progress
                    del said[: _PIECES_KEPT // 2]
        return process.wait(), "".join(said)
    except BaseException:
        _end(process)
        raise
    finally:
        process.stdout.close()


def steps_of(progress: Callable[[int], None], pattern: str) -> Callable[[str], None]:
    """Return a listener for `run_program` that finds step numbers in the output of a program."""
    rest = ""

    def heard(piece: str) -> None:
        nonlocal rest
        rest += piece
        *_, last = [None, *re.finditer(pattern, rest)]
        if last is not None:
            progress(int(last[1]))
            rest = rest[last.end() :]
        rest = rest[-200:]  # a number may be divided between two pieces

    return heard


def _check_system() -> None:
    """Refuse to start engines on Windows, which is not supported."""
    if sys.platform == "win32":
        raise UserError(
            "dynamics needs Linux or macOS, and this is Windows: run it in the Windows Subsystem "
            "for Linux; results can be read and drawn here"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all its child processes: pip's `lmp` is a script."""
    if sys.platform == "win32":
        return  # `_check_system` has refused to start it
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    """In the new process: end with the parent. Its children end when nobody reads their output."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(descriptor: int, module: str, name: str) -> None:
    """Answer requests until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    connection = Connection(descriptor)
    worker: Any = None
    while True:
        try:
            method, arguments, wants_progress = connection.recv()
        except EOFError:
            os._exit(0)  # without MPI's shutdown, which would print a complaint
        try:
            if worker is None:
                worker = getattr(importlib.import_module(module), name)(*arguments)
                answer = None
            else:
                with _Watch(worker, connection, wants_progress):
                    answer = getattr(worker, method)(*arguments)
            connection.send(("done", answer))
        except UserError as error:
            connection.send(("user error", str(error)))
        except Exception:
            connection.send(("defect", traceback.format_exc()))


class _Watch:
    """While the worker works: end if the parent has ended, and report the progress to it."""

    def __init__(self, worker: Worker, connection: Connection, wants_progress: bool) -> None:
        self._worker, self._connection = worker, connection
        self._wants_progress = wants_progress
        self._parent = os.getppid()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(PROGRESS_INTERVAL_S):
            if os.getppid() != self._parent:
                os._exit(1)
            if self._wants_progress:
                self._connection.send(("progress", self._worker.step()))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
