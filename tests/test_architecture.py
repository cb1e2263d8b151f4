"""The wings of the package and who may lean on whom, read off the imports."""

import ast
import importlib
import subprocess
import sys
import types

import pytest

import noisescale
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "noisescale"
# plots below statistics: they draw tables and plain numbers, and results draw themselves by them
FLOW = ("errors", "plots", "statistics", "problems", "measure", "training", "studies", "cli")
BELOW = {wing: set(FLOW[:place]) for place, wing in enumerate(FLOW)}
BELOW["integrations"] = BELOW["measure"] | {"measure"}
BESIDE = {"__init__", "__main__", "_version"}  # of the wings
FORMER = {"run_tables", "store", "synthetic"}  # names kept for a release
AT_MOST = 9  # things in one folder
# what the folders beside the package may import of it
NEIGHBOURS = {
    "analysis": ("errors", "statistics", "training.records.folder", "training.records.tables"),
    "paper_figures": ("plots",),
}


def imports(path):
    """Dotted names of everything that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def public_homes():
    """The module that each public name comes from, by the public list."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


HOMES = public_homes()


def used(path):
    """What a file imports of the package, without its name, a public name under its module's."""
    parts = [name.partition(".")[2] for name in imports(path) if name.split(".")[0] == "noisescale"]
    return {f"{HOMES[part]}.{part}" if part in HOMES else part for part in parts if part}


def wing_of(name):
    return name.split(".")[0]


def files_of(wing):
    path = PACKAGE / wing
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def breaches(files, allowed):
    """Imports of the package that no entry of `allowed` covers, each with the file it is in."""
    return {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files
        for name in used(path)
        if not any(name == good or name.startswith(f"{good}.") for good in allowed)
    }


def test_the_wings_are_all_there_is():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert folders | modules == set(BELOW) | BESIDE | FORMER


@pytest.mark.parametrize("wing", BELOW)
def test_a_wing_leans_on_those_below_it_alone(wing):
    assert breaches(files_of(wing), {wing, *BELOW[wing], "_version"}) == set()


def test_a_wing_that_leans_on_one_above_it_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(
        "from noisescale.errors import DataError\n"
        "def late():\n    from noisescale import Problem, Estimate\n"
        "    import noisescale.cli.train\n"
    )
    assert breaches([path], {"statistics", "errors"}) == {
        ("module.py", "problems.problem.Problem"),
        ("module.py", "cli.train"),
    }


@pytest.mark.parametrize("wing", ["errors", "statistics", "plots"])
def test_numbers_and_pictures_need_no_torch(wing):
    for path in files_of(wing):
        assert not {
            name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision")
        }


def test_no_folder_holds_more_than_can_be_seen_at_once():
    neighbours = ("experiments", "analysis", "paper_figures")
    packages = [PACKAGE, *(ROOT / name for name in neighbours)]
    folders = [path.parent for package in packages for path in package.rglob("__init__.py")]
    for folder in [folder for folder in folders if folder != PACKAGE]:
        things = [path for path in folder.iterdir() if not path.name.startswith("_")]
        assert len(things) <= AT_MOST, folder


def test_no_two_modules_import_each_other():
    files = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    needs = {module: used(path) for module, path in files.items()}
    graph = {
        module: {
            other
            for other in files
            if any(name == other or name.startswith(f"{other}.") for name in names)
        }
        - {module}
        for module, names in needs.items()
    }
    while free := {module for module, needed in graph.items() if not needed}:
        graph = {module: needed - free for module, needed in graph.items() if module not in free}
    assert graph == {}


@pytest.mark.parametrize("folder", NEIGHBOURS)
def test_tables_and_figures_touch_no_model(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert breaches(files, NEIGHBOURS[folder]) == set()
    for path in files:
        assert not {
            name for name in imports(path) if name.split(".")[0] in ("torch", "experiments")
        }


def test_nothing_imports_the_experiments():
    for folder in ("noisescale", "analysis", "paper_figures"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name in imports(path) if name.split(".")[0] == "experiments"}


def test_tests_share_by_their_helpers_alone():
    for path in (ROOT / "tests").rglob("*.py"):
        shared = {name for name in imports(path) if name.split(".")[0] == "tests"}
        assert not {name for name in shared if name.split(".")[1] != "helpers"}, path


@pytest.mark.processes
def test_public_names_load_when_they_are_used():
    code = (
        "import sys, noisescale.cli, noisescale.training.config\n"
        "late = {'torch', 'scipy', 'pandas', 'matplotlib', 'sklearn'}\n"
        "assert not {'numpy', *late} & set(sys.modules)\n"
        "import noisescale.training.records.folder\n"
        "assert not late & set(sys.modules)\n"
        "noisescale.Problem\nassert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("run_tables", ("NOISE", "estimate_columns", "estimate_row", "read_cells", "read_noise")),
        ("store", ("CONFIG", "RunFolder", "finished_runs", "nullable", "write_table")),
        ("synthetic", ("SyntheticProblem", "linear_regression", "noisy_quadratic")),
    ],
)
def test_former_modules_still_give_what_they_held(module, names):
    former = importlib.import_module(f"noisescale.{module}")
    assert all(hasattr(former, name) for name in names)


def test_every_public_name_exists_and_has_a_docstring():
    assert set(noisescale.__all__) == set(HOMES)
    for name in set(noisescale.__all__) - {"__version__", "LossFn", "MatVec", "Params"}:
        value = getattr(noisescale, name)
        assert value.__doc__
        assert not isinstance(
            value, types.ModuleType
        )  # a submodule of the same name would take its place
    with pytest.raises(AttributeError, match="nonsense"):
        _ = noisescale.nonsense
