"""The layers of the package, read off its imports."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

import noisescale

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: {
        "_version",
        "branching",
        "commands",
        "config",
        "critical_batch",
        "curvature_noise",
        "errors",
        "estimate",
        "goal_table",
        "hyperbola",
        "interrupts",
        "learning_rate_law",
        "noise",
        "recommendation",
        "run_tables",
        "running_noise",
        "stability",
        "stable_region",
        "store",
        "tradeoff",
    },
    1: {"problem"},
    2: {
        "batches",
        "build",
        "cuda_graph",
        "curvature",
        "data",
        "distributed",
        "eigenpairs",
        "environment",
        "example_curvature",
        "example_map",
        "factored_gradients",
        "gradient_engine",
        "gradient_norms",
        "gradient_rules",
        "gradients",
        "in_place_sgd",
        "krylov",
        "layer_engine",
        "layer_recorder",
        "linear_sgd",
        "micro_batches",
        "mnist_files",
        "models",
        "objective",
        "random_state",
        "sharpness",
        "spectrum",
        "synthetic",
        "vmap_engine",
    },
    3: {
        "checkpoint",
        "critical",
        "critical_plots",
        "evaluation",
        "integrations",
        "measure",
        "monitor",
        "noise_plots",
        "plots",
        "progress",
        "run",
        "schedule",
        "sweep",
        "sweep_plots",
        "tracking",
        "training",
        "weights",
    },
    4: {"cli", "__main__"},
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}


def imports(path):
    """Dotted names of everything imported anywhere in a file, functions' own imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(names):
    """The package's own modules behind `names`, a public name standing for the module it comes from."""
    parts = [name.split(".")[1] for name in names if name.startswith("noisescale.")]
    return {noisescale._MODULES.get(part, part).split(".")[0] for part in parts} & set(LAYER)


def files_of(module):
    path = ROOT / "noisescale" / module
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def test_every_module_has_its_layer():
    folders = {path.parent.name for path in (ROOT / "noisescale").glob("*/__init__.py")}
    present = {path.stem for path in (ROOT / "noisescale").glob("*.py")} | folders
    assert present - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("module", sorted(LAYER))
def test_a_module_imports_its_own_layer_or_lower_ones(module):
    for path in files_of(module):
        used = modules(imports(path)) - {module}
        assert {other for other in used if LAYER[other] > LAYER[module]} == set()
        if LAYER[module] == 0:
            assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision")}


def test_there_are_no_cycles():
    graph = {
        module: set().union(*(modules(imports(path)) for path in files_of(module))) - {module}
        for module in LAYER
    }
    while free := {module for module, used in graph.items() if not used}:
        graph = {module: used - free for module, used in graph.items() if module not in free}
    assert graph == {}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("analysis", {f"noisescale.{module}" for module in LAYERS[0]}),
        (
            "paper_figures",
            {
                "noisescale.plots.training",
                "noisescale.plots.noise",
                "noisescale.plots.stability_map",
                "noisescale.plots.critical_batch",
            },
        ),
    ],
)
def test_tables_and_figures_touch_no_model(folder, allowed):
    for path in (ROOT / folder).glob("*.py"):
        own = {name for name in imports(path) if name.startswith("noisescale")}
        assert {
            name for name in own if not any(name == good or name.startswith(f"{good}.") for good in allowed)
        } == set()
        assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "experiments")}


def test_nothing_imports_the_experiments():
    for folder in ("noisescale", "analysis", "paper_figures"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name in imports(path) if name.split(".")[0] == "experiments"}


def test_public_names_load_when_they_are_used():
    code = (
        "import sys, noisescale, noisescale.problems.config, noisescale.training.records.folder\n"
        "assert 'torch' not in sys.modules\n"
        "noisescale.Problem\nassert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists_and_has_a_docstring():
    for name in set(noisescale.__all__) - {"__version__", "LossFn", "MatVec", "Params"}:
        value = getattr(noisescale, name)
        assert value.__doc__
        assert not isinstance(value, types.ModuleType)  # a submodule of the same name would take its place
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = noisescale.nonsense
