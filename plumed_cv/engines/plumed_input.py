"""PLUMED in a segment: its input, and its messages in one sentence."""

from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.engines.segments import Segment
from plumed_cv.setup.plumed_actions import all_actions

# Text between the messages of nested exceptions in PLUMED's wrapper.
NESTED = "The above exception was the direct cause of the following exception:"
# Distance of periodic images of a structure for PLUMED, along directions without periodicity.
VACUUM_A = 1000.0

_FRAME = ("PLUMED error", "at ", "message follows", "(tools", "(core")  # lines to remove


def write_plumed_input(segment: Segment) -> tuple[Path, str]:
    """Return the file of a segment's PLUMED input (written if it is a text) and its text.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    assert segment.plumed is not None
    if isinstance(segment.plumed, Path):
        file = segment.plumed.absolute()
        try:
            return file, file.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    file = segment.directory.absolute() / "plumed.dat"
    file.write_text(segment.plumed, encoding="utf-8")
    return file, segment.plumed


def uses_energy(plumed_dat: str, folder: Path) -> bool:
    """Whether a PLUMED input that runs in a folder, or a file that it includes, has ENERGY."""
    return any(action.name == "ENERGY" for action in all_actions(plumed_dat, folder))


def plumed_sentence(message: str) -> str:
    """Return the message of a PLUMED exception, without its frame and positions in the source.

    The first of nested exceptions is the cause. The last one names the action, which is added if
    the cause does not name it.
    """
    said = []
    for part in message.split(NESTED):
        lines = [line.removeprefix("+++").strip() for line in part.splitlines()]
        said.append(" ".join(line for line in lines if line and not line.startswith(_FRAME)))
    cause, context = said[0], said[-1]
    named = len(said) == 1 or " with label " in cause
    return f"PLUMED: {cause}" if named else f"PLUMED: {cause} ({context})"
