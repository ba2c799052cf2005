"""A run directory: the names of its files, and a lock against other runs."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import locked, write_text
from plumed_cv.engines import check_folder

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.[^.]+)?")


@dataclass(frozen=True)
class RunDirectory:
    """Names of the files of a run."""

    root: Path

    def cv(self, n: int) -> Path:
        """Model file of the collective variable xi^(n)."""
        return self.root / f"cv-{n}.safetensors"

    def training(self, n: int) -> Path:
        """Record of the training of xi^(n)."""
        return self.root / f"training-{n}.json"

    def iteration(self, n: int) -> Path:
        """Folder of the bABF run along xi^(n-1)."""
        return self.root / f"iteration-{n}"

    def rate(self, n: int) -> Path:
        """Folder of the transmission coefficients along xi^(n-1)."""
        return self.iteration(n) / "rate"

    def iteration_result(self, n: int) -> Path:
        """Result of iteration n."""
        return self.iteration(n) / "result.json"

    def has_ended(self, n: int) -> bool:
        """Whether iteration n has a result and has trained the next collective variable."""
        return self.iteration_result(n).exists() and self.cv(n).exists()

    def last_begun(self) -> int:
        """Number of the last iteration that has a folder; 0 if there is none."""
        n = 0
        while self.iteration(n + 1).is_dir():
            n += 1
        return n

    @property
    def path(self) -> Path:
        """The minimum energy path."""
        return self.root / "path.xyz"

    @property
    def atoms(self) -> Path:
        """The atoms on which the CVs of a solid depend, and how they were chosen."""
        return self.root / "atoms.json"

    @property
    def deviation(self) -> Path:
        """The model deviation in the reactant and its limit, if the dynamics watches it."""
        return self.root / "model-deviation.json"

    @property
    def beginning(self) -> Path:
        """Data from a run at another temperature, if there is one."""
        return self.root / "beginning.json"

    @property
    def harmonic(self) -> Path:
        """Folder of harmonic theory, which `plumed-cv harmonic` makes."""
        return self.root / "harmonic"

    @property
    def temperatures(self) -> Path:
        """The temperatures of a run at several, each in a run directory of its own in this one."""
        return self.root / "temperatures.json"

    @property
    def multiplicity(self) -> Path:
        """Number of equivalent events, by the symmetry of the initial state."""
        return self.root / "multiplicity.json"

    @property
    def components(self) -> Path:
        """The number of principal components, and the reason for it."""
        return self.root / "components.json"

    @property
    def provenance(self) -> Path:
        """Provenance: input, versions and machine of the run."""
        return self.root / "provenance.json"

    @property
    def selection(self) -> Path:
        """The structures that were chosen for a better method."""
        return self.root / "labels" / "selection.json"

    @property
    def correction(self) -> Path:
        """The correction of the answer by these structures."""
        return self.root / "labels" / "correction.json"

    @property
    def result(self) -> Path:
        """The answer."""
        return self.root / "result.json"

    def write_result(self, result: dict[str, Any]) -> None:
        """Replace the answer."""
        write_text(self.result, json.dumps(result, indent=2, allow_nan=False))


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Make the run directory and exclude other runs from it until the block ends.

    Raises
    ------
    UserError
        If another run uses it, or if it cannot be a folder.
    """
    check_folder(root)
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root / ".lock", timeout_s=0.0))
        except TimeoutError:
            raise UserError(
                f"{root}: another run is at work in this directory; wait for its end, or end it."
            ) from None
        except OSError as error:
            raise UserError(
                f"{root}: cannot be used as a run directory: {error.strerror}."
            ) from None
        _sweep(root)
        yield


def _sweep(root: Path) -> None:
    """Remove temporary files of killed processes (`files.replacing`).

    Folders of segments are left alone: `plumed-cv sample` may be active there, and the whole folder
    of an unfinished segment is removed when it is repeated.
    """
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith("unfinished-")]
        for name in filter(_TEMPORARY.fullmatch, names):
            Path(folder, name).unlink(missing_ok=True)
