"""The tables of docs/benchmarks.md, from the JSON in experiments/benchmarks/results.

`python docs/benchmarks.py` fills in what stands between its markers; no number of a
measurement is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).resolve().with_suffix(".md")
RESULTS = PAGE.parents[1] / "experiments" / "benchmarks" / "results"
# what is filled in: <!-- results: NAME --> ... <!-- end of NAME -->
PART = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
RATES = {  # of results/noise-*.json, as they are called on the page
    "hooks": "ours, `hooks`",
    "hooks, with errors": "ours, `hooks`, with errors",
    "compiled": "ours, `compiled`",
    "eager vmap": "`torch.func.vmap`, eager",
    "BackPACK BatchL2Grad": "BackPACK, BatchL2Grad",
    "Opacus ghost norms": "Opacus, ghost norms",
    "Opacus GradSampleModule": "Opacus, gradients written out",
}
MODELS = {"mlp": "MLP", "cnn": "CNN", "transformer": "transformer", "gpt2 small": "GPT-2, small"}
MODELS |= {"gpt2": "GPT-2"}
NONE = "–"
Record = dict[str, Any]
Rows = list[list[str]]


def filled(text: str) -> str:
    """The page with its tables as the results give them."""
    return PART.sub(lambda part: f"{part[1]}{_of_benchmark(part[2])}{part[3]}", text)


def main() -> None:
    """Fills in docs/benchmarks.md."""
    PAGE.write_text(filled(PAGE.read_text()))


def _of_benchmark(name: str) -> str:
    """Where, when and by what command a benchmark was made, and its tables; for each machine."""
    parts = []
    paths = sorted([*RESULTS.glob(f"{name}.json"), *RESULTS.glob(f"{name}-*.json")])
    for path in paths:
        record = json.loads(path.read_text())
        where = record["environment"]
        parts.append(
            f"{where['device']}, torch {where['torch'].partition('+')[0]}, {record['date']}: "
            f"`python -m experiments.benchmarks.{name}`, [JSON](results/{path.name})"
        )
        parts += [_markdown(rows) for rows in TABLES[name](record)]
    return "\n" + "".join(f"{part}\n\n" for part in parts)


def _noise(record: Record) -> Iterator[Rows]:
    models, targets = record["models"], record["targets"]
    yield [
        ["in plain passes", *(f"{MODELS[name]}, {_size(of['num_parameters'])}"
                              for name, of in models.items())],
        *(
            [label, *(_with_target(_rate(of, key), targets.get(name, {}).get(key), "≤")
                      for name, of in models.items())]
            for key, label in RATES.items()
        ),
        ["memory of `hooks` with errors, in that of a plain pass of the same chunk",
         *(_with_target(_number(of["memory"]["ratio"]), targets.get(name, {}).get("memory"), "≤")
           if of.get("memory") else NONE for name, of in models.items())],
        ["a plain pass, examples a second",
         *(_number(of["rates"]["forward and backward"]["examples_per_second"])
           for of in models.values())],
    ]  # fmt: skip
    yield [
        ["all 60,000 examples of MNIST, with errors", ""],
        ["seconds", _number(record["seconds_with_errors"])],
        ["peak memory above model and data, MiB", _mib(record["peak_bytes"])],
    ]
    if (geometry := record.get("geometry")) is not None:
        where = geometry["environment"]
        yield [
            [f"character GPT, {_size(geometry['num_parameters'])}, {geometry['num_examples']} "
             f"sequences, with errors ({where['device']}, {geometry['date']}, `--geometry`)",
             "", "target"],
            ["B_simple, seconds of the process", _number(geometry["seconds"]["plain"]), ""],
            ["B_simple and B^P_simple", _number(geometry["seconds"]["both"]), ""],
            ["both in the plain one (quartiles)",
             "{median:.2f} ({low:.2f}–{high:.2f})".format(**geometry["ratio"]),
             f"≤ {geometry['target']:g}"],
            *(
                [f"peak memory of both on {int(size):,} sequences in chunks of "
                 f"{geometry['chunk_size']}, MiB", _mib(peak), ""]
                for size, peak in geometry["peak_bytes"].items()
            ),
        ]  # fmt: skip


def _curvature(record: Record) -> Iterator[Rows]:
    products, targets = record["products"]["in_gradients"], record["targets"]
    yield [
        ["a product, in gradient passes", "graph kept", "recorded anew", "target"],
        *(
            [label, _number(products[f"{key}, kept"]), _number(products[f"{key}, anew"]),
             f"≤ {targets[key]:g}"]
            for key, label in (("hessian", "Hessian"), ("ggn", "Gauss–Newton"))
        ),
    ]  # fmt: skip
    solvers = record["largest_eigenvalue"]["solvers"]
    yield [
        ["λ_max by", "seconds", "products", "true relative error", "ours/theirs", "target"],
        *(
            [name, _number(of["seconds"]), str(of["num_matvecs"] or NONE),
             f"{of['relative_error']:.0e}",
             NONE if name == "ours" else _number(of["ours/theirs"]),
             _solver_target(name, targets)]
            for name, of in solvers.items()
        ),
    ]  # fmt: skip
    warm = record["warm_starts"]
    yield [
        ["λ_max again, 100 steps later", "cold", "from the last eigenvectors", "ratio", "target"],
        ["products", str(sum(warm["cold"])), str(sum(warm["warm"])), _number(warm["ratio"]),
         f"≤ {targets['warm/cold']:g}"],
        ["peak memory above model and data, MiB", _mib(record["peak_bytes"]), "", "",
         f"≤ {_mib(targets['peak bytes'])}"],
    ]  # fmt: skip


def _solver_target(name: str, targets: Record) -> str:
    """Of a peer's solver at the tolerance at which it is as exact as ours."""
    if name.startswith("curvlinops"):
        return f"≤ {targets['curvlinops']:g}"
    return f"≤ {targets['pyhessian']:g}" if name.endswith("1e-05") else NONE


def _training(record: Record) -> Iterator[Rows]:
    yield [
        ["B", "notebook", "eager", "ours", "ours/notebook", "ours/eager (quartiles)", "target"],
        *(
            [
                str(row["batch_size"]),
                *(_number(row["steps_per_second"][name]) for name in ("notebook", "eager", "ours")),
                _number(row["ratio"]["notebook"]["median"]),
                "{median:.2f} ({low:.2f}–{high:.2f})".format(**row["ratio"]["eager"]),
                f"≥ {row['target']:g}",
            ]
            for row in record["rows"]
        ),
    ]
    if (adamw := record.get("adamw")) is not None:
        speeds = [_number(speed) for speed in adamw["steps_per_second"].values()]
        ratio = "{median:.2f} ({low:.2f}–{high:.2f})".format(**adamw["ratio"]["fused"])
        headings = ["B", "plain loop, fused AdamW", "ours", "ours/plain (quartiles)", "target"]
        target = f"≥ {adamw['target']:g}"
        yield [headings, [str(adamw["batch_size"]), *speeds, ratio, target]]


def _monitor(record: Record) -> Iterator[Rows]:
    yield [
        ["micro-batches × examples", "step, ms", "monitor, %", "every norm by differences, %"],
        *(
            [
                f"{row['micro_batches']} × {row['examples']}",
                _number(1e3 * row["seconds"]["plain"]),
                _with_target(
                    f"{100 * row['looking']:.1f}",
                    100 * record["target"] if number == 0 else None,
                    "≤",
                ),
                f"{100 * row['looking_differences']:.1f}",
            ]
            for number, row in enumerate(record["results"])
        ),
    ]


def _monitor_sizes(record: Record) -> Iterator[Rows]:
    def share(row: Record, target: float | None = None, key: str = "overhead") -> str:
        return _with_target(f"{100 * row[key]:.1f}", None if target is None else 100 * target, "≤")

    targets = record["targets"]
    yield [
        ["model", "micro-batches × examples", "step, CPU ms", "monitor, %"],
        *(
            [
                f"{MODELS[name]}, {_size(row['parameters'])}",
                f"{row['micro_batches']} × {row['examples']}",
                _number(1e3 * row["seconds"]),
                share(row, targets["monitor"] if name == "mlp" else None),
            ]
            for name, row in record["models"].items()
        ),
    ]
    yield [
        ["norm-layer monitor", "examples", "step, CPU ms", "not split, %", "splits included, %"],
        *(
            [
                MODELS[name],
                str(row["examples"]),
                _number(1e3 * row["seconds"]),
                share(row, targets["norm layers"] if name == "transformer" else None),
                share(row, key="mean_overhead"),
            ]
            for name, row in record["norm_layers"].items()
        ),
    ]
    yield [
        ["two processes", "examples in each", "step, CPU ms of one", "monitor, %"],
        *(
            [
                f"{MODELS[name.split()[0]]}, {name.split()[1].upper()}",
                str(row["examples"]),
                _number(1e3 * row["seconds"]),
                share(row),
            ]
            for name, row in record["processes"].items()
        ),
    ]


def _sweep(record: Record) -> Iterator[Rows]:
    targets, bisection, processes = (record[key] for key in ("targets", "bisection", "processes"))
    one, two = (float(np.median(processes["seconds"][count])) for count in ("1", "2"))
    yield [
        ["what", "against", "ratio", "target", ""],
        ["two local processes", "one", f"{processes['speed_up']:.2f} times as fast",
         f"≥ {targets['processes']:g}",
         f"{processes['cells']} cells, {two:.0f} and {one:.0f} s, the start of Python included"],
        ["bisection", "the whole grid", f"{100 * bisection['share']:.0f} % of the runs",
         f"≤ {100 * targets['bisection']:g} %",
         f"{bisection['runs']} of {bisection['runs_of_grid']} runs, for edges within "
         f"{max(bisection['grid_steps_apart']):.2f} grid steps"],
        *(
            [f"{row['replicas']} vmapped replicas, B = {row['batch_size']}", "single runs",
             f"{row['replicas/eager']:.2f} times the updates",
             f"≥ {targets['replicas']:g}", ""]
            for row in record["replicas"]
        ),
    ]  # fmt: skip


def _startup(record: Record) -> Iterator[Rows]:
    results = record["results"]
    yield [
        ["what", "against", "seconds more", "target", "seconds in all"],
        *(
            [f"`{name}`" if name != "worker" else "a worker's start", f"`{of['bare']}` alone",
             f"{of['seconds']:.3f}", f"≤ {of['target']:g}",
             f"{results['cpu_seconds'][name]:.2f}"]
            for name, of in results["added"].items()
        ),
    ]  # fmt: skip


TABLES: dict[str, Callable[[Record], Iterator[Rows]]] = {
    "noise": _noise,
    "curvature": _curvature,
    "training": _training,
    "monitor": _monitor,
    "monitor_sizes": _monitor_sizes,
    "sweep": _sweep,
    "startup": _startup,
}


def _rate(model: Record, key: str) -> str:
    """What a way to the gradients takes of a model, in plain passes."""
    if key not in model["rates"]:
        return "not covered" if key in model["not_covered"] else NONE
    return _number(model["rates"][key]["in_gradients"])


def _with_target(text: str, target: float | None, sign: str) -> str:
    return text if target is None else f"{text} (target {sign} {target:g})"


def _number(value: float) -> str:
    """Three significant digits; all of them from a thousand on."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _markdown(rows: Rows) -> str:
    head, *body = rows
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *body])


if __name__ == "__main__":
    main()
