"""Fixtures: threads and seeds, pictures where they are the subject, MNIST, finished studies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from noisescale.problems.data.mnist_files import FILES
from noisescale.problems.data.splits import default_data_dir
from noisescale.studies.critical_batch import pictures as critical_batch
from noisescale.studies.stability_map import pictures as stability_map
from noisescale.training.records import comparison, pictures as run
from tests.helpers.folders import unchanged

torch.set_num_threads(1)
DRAW_PICTURES = {module: module.draw_pictures for module in (run, stability_map, critical_batch)}
DRAW_COMPARISON = comparison.draw_comparison


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that read MNIST, which they do by the fixture alone; skips those of a GPU."""
    without = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(without)
        if "mnist_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("mnist")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_pictures() -> Iterator[None]:
    """Runs and studies draw nothing: that would take longer than the small ones train."""
    with pytest.MonkeyPatch.context() as patch:
        for module in DRAW_PICTURES:
            patch.setattr(module, "draw_pictures", lambda folder, **options: [])
        patch.setattr(comparison, "draw_comparison", lambda table, **options: table)
        yield


@pytest.fixture(autouse=True)
def _pictures_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # request.keywords has the names of the folders above as well, such as that of a checkout
    if request.node.get_closest_marker("pictures") is not None:
        draw_again(monkeypatch)


@pytest.fixture(scope="module")
def drawing() -> Iterator[None]:
    """Runs and studies draw their pictures throughout a module that asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        draw_again(patch)
        yield


def draw_again(patch: pytest.MonkeyPatch) -> None:
    """Runs and studies draw their pictures as they do outside the tests."""
    for module, draw_pictures in DRAW_PICTURES.items():
        patch.setattr(module, "draw_pictures", draw_pictures)
    patch.setattr(comparison, "draw_comparison", DRAW_COMPARISON)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """Where MNIST lies; without it, as on a machine without a network, its tests cannot run."""
    folder = default_data_dir().resolve()
    if not all((folder / "MNIST" / "raw" / name).is_file() for name in FILES):
        pytest.skip("MNIST is not in $NOISESCALE_DATA or the user cache")
    return folder


class Finished(NamedTuple):
    """A study made in this thread: its folder, its result, and the executor that knows its runs."""

    out: Path
    result: Any
    executor: Any


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The sweep of tests.helpers.sweeps, without predictions; what writes takes a copy."""
    from noisescale.studies.stability_map.run import run_sweep
    from tests.helpers.executors import Here
    from tests.helpers.sweeps import CONFIG, QUIET

    out, executor = tmp_path_factory.mktemp("finished") / "sweep", Here()
    with pytest.MonkeyPatch.context() as patch:
        draw_again(patch)
        result = run_sweep(CONFIG, out, executor=executor, options=QUIET)
    with unchanged(out):
        yield Finished(out, result, executor)


@pytest.fixture(scope="session")
def finished_critical_batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The measurement TRACKED of tests.helpers.critical_batch; what writes takes a copy."""
    from noisescale.studies.critical_batch.run import run_critical_batch
    from tests.helpers.critical_batch import TRACKED
    from tests.helpers.executors import Here

    out, executor = tmp_path_factory.mktemp("finished") / "critical_batch", Here()
    with pytest.MonkeyPatch.context() as patch:
        draw_again(patch)
        result = run_critical_batch(TRACKED, out, executor=executor)
    with unchanged(out):
        yield Finished(out, result, executor)
