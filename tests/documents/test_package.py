"""The wheel holds the code, its data files and types; the sdist the checkout."""

import ast
import re
import subprocess
import sys
import tomllib
from email import message_from_string
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
BUILT = {module["name"] for module in PYPROJECT["tool"]["setuptools"]["ext-modules"]}
IMPORTED_AS = {"scikit-learn": "sklearn", "mlflow-skinny": "mlflow"}  # under another name
SERVICES = {"mlflow", "wandb"}  # clients of servers, for which tests have stand-ins
PARTS = {"functorch": "torch"}
# run in a copy of the checkout: setuptools' own lists, without building or fetching anything
LISTS = """
import os, sys
from setuptools.build_meta import get_requires_for_build_wheel, prepare_metadata_for_build_wheel
from setuptools import Distribution
out = sys.argv[1]  # which setuptools changes
assert get_requires_for_build_wheel() == []
prepare_metadata_for_build_wheel(out)
dist = Distribution()
dist.parse_config_files()
dist.script_name = "setup.py"
build = dist.get_command_obj("build_py")
build.ensure_finalized()
with open(os.path.join(out, "wheel"), "w") as written:
    for module in build.get_outputs(include_bytecode=False):
        print(os.path.relpath(module, build.build_lib), file=written)
info = dist.get_command_obj("egg_info")
info.egg_base = out
info.ensure_finalized()
info.run()
with open(os.path.join(out, "sdist"), "w") as written:
    print(*info.filelist.files, sep="\\n", file=written)
"""


def git_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the file lists of wheel and sdist, and the wheel's metadata."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in git_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-c", LISTS, str(out)], cwd=tree, check=True, capture_output=True
    )
    return out


@pytest.mark.processes
def test_the_wheel_holds_every_file_of_the_package(built):
    files = set((built / "wheel").read_text().splitlines())
    assert files == {name for name in git_files() if name.startswith("noisescale/")}
    assert {"noisescale/py.typed", "noisescale/__init__.pyi"} <= files
    assert "noisescale/statistics/critical_batch/calibration/measured.csv" in files


@pytest.mark.processes
def test_the_sdist_is_the_checkout_and_nothing_else(built):
    files = {Path(name).as_posix() for name in (built / "sdist").read_text().splitlines()}
    files = {name for name in files if ".egg-info" not in name}
    assert files == set(git_files())


@pytest.mark.processes
def test_the_metadata_says_what_the_project_is(built):
    written = next(built.glob("*.dist-info")) / "METADATA"
    metadata = message_from_string(written.read_text())
    assert metadata["Name"] == "noisescale"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] is metadata["Author-email"] is None
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert metadata["Keywords"]
    assert metadata.get_all("Project-URL")


def requirement_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[ \[>=;]", need)[0] for need in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


def third_party(path: Path) -> set[str]:
    """Top names of what a file imports, wherever in it, that are neither ours nor Python's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names.add(node.module.split(".")[0])
    return {PARTS.get(name, name) for name in names} - set(sys.stdlib_module_names) - {"noisescale"}


def test_everything_imported_is_a_dependency_or_an_extra():
    optional = set(EXTRAS) - {"dev", "docs", "test"}
    stated = requirement_names(
        PROJECT["dependencies"] + [need for extra in optional for need in EXTRAS[extra]]
    )
    imported = set().union(*(third_party(path) for path in (ROOT / "noisescale").rglob("*.py")))
    assert imported - {"_typeshed"} - BUILT <= stated
    assert requirement_names(PROJECT["dependencies"]) <= imported  # and nothing for nothing


@pytest.mark.parametrize("extra", ["lightning", "transformers"])
def test_an_extra_installs_what_its_integration_imports(extra):
    imported = third_party(ROOT / "noisescale" / "integrations" / f"{extra}.py")
    assert imported <= requirement_names([*EXTRAS[extra], *PROJECT["dependencies"]])


def test_all_optional_packages_are_in_the_developers_environment():
    whole = next(need for need in EXTRAS["dev"] if need.startswith("noisescale["))
    assert set(whole.removeprefix("noisescale[").rstrip("]").split(",")) == set(EXTRAS) - {
        "dev",
        *SERVICES,
    }
