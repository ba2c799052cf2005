"""Each engine in turn, on the crystal and on atoms without forces."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from plumed_cv.engines import Engine
from tests.engines.kits import EPSILON, KITS, Kit, crystal, gas


@pytest.fixture(scope="module", params=KITS)
def kit(request: pytest.FixtureRequest, plugin: Path) -> Kit:
    return KITS[request.param]


@pytest.fixture(scope="module")
def engine(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with kit.make(crystal(), EPSILON, tmp_path_factory.mktemp("crystal")) as engine:
        yield engine


@pytest.fixture(scope="module")
def free(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Atoms on which only PLUMED's forces act."""
    with kit.make(gas(), 0.0, tmp_path_factory.mktemp("gas")) as engine:
        yield engine
