"""The tables of docs/benchmarks.md, from the JSON in experiments/benchmarks/results.

`python docs/benchmarks.py` fills in what stands between its markers; no number of a
measurement is written by hand. `--summary FOLDER` prints the first table alone, of the JSON files
of a folder.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
LABELS = {"noise": "`measure_noise`", "hessian": "a Hessian product", "monitor": "the monitor"}
AXES = {"N": "N examples", "P": "P parameters", "B": "B examples a micro-batch", "T": "T places"}
NONE = "–"
Record = dict[str, Any]
Rows = list[list[str]]


def filled(text: str) -> str:
    """The page with its tables as the results give them."""
    return PART.sub(lambda part: f"{part[1]}{_part(part[2])}{part[3]}", text)


def main() -> None:
    """Fills in docs/benchmarks.md, or prints the summary of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="of JSON files")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of --summary: that one's alone")
    wanted = parser.parse_args()
    if wanted.summary is None:
        PAGE.write_text(filled(PAGE.read_text()))
        return
    print(_markdown(summary(wanted.summary, wanted.device)))


class Figure(NamedTuple):
    """A figure of a benchmark beside its target.

    sign: "≥" or "≤" of the target; of a figure without one, None.
    """

    what: str
    value: float
    sign: str | None = None
    target: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.sign == "≥" else self.value <= self.target


def summary(folder: Path, device: str | None = None) -> Rows:
    """What every benchmark came to, a row for each of its targets.

    Args:
        folder: of the JSON files.
        device: "cpu" or "cuda", the files of that alone; None: all of them.
    """
    rows = [["benchmark", "what", "measured", "target", "met"]]
    for name, figures in FIGURES.items():
        for path in _files(name, folder):
            is_gpu = path.stem.endswith("-cuda")
            if device is not None and is_gpu != (device == "cuda"):
                continue
            record = json.loads(path.read_text())
            label = f"{name}, GPU" if is_gpu else name
            rows += [[label, *_figure(figure)] for figure in figures(record)]
            if left_out := record.get("left_out"):
                rows.append([label, _left_out(left_out), NONE, NONE, NONE])
    return rows


def _figure(figure: Figure) -> list[str]:
    target = NONE if figure.target is None else f"{figure.sign} {figure.target:.3g}"
    met = NONE if figure.is_met is None else "yes" if figure.is_met else "no"
    return [figure.what, _number(figure.value), target, met]


def _part(name: str) -> str:
    """What stands between two markers: of a benchmark, or the summary of all."""
    if name == "summary":
        return f"\n{_markdown(summary(RESULTS))}\n\n"
    return _of_benchmark(name)


def _of_benchmark(name: str) -> str:
    """Where, when and by what command a benchmark was made, and its tables; for each machine."""
    parts = []
    for path in _files(name, RESULTS):
        record = json.loads(path.read_text())
        where = record["environment"]
        parts.append(
            f"{where['device']}, torch {where['torch'].partition('+')[0]}, {record['date']}: "
            f"`python -m experiments.benchmarks.{name}`, [JSON](results/{path.name})"
        )
        parts += [_markdown(rows) for rows in TABLES[name](record)]
        if left_out := record.get("left_out"):
            parts.append(_left_out(left_out))
    return "\n" + "".join(f"{part}\n\n" for part in parts)


def _files(name: str, folder: Path) -> list[Path]:
    return sorted([*folder.glob(f"{name}.json"), *folder.glob(f"{name}-*.json")])


def _left_out(left_out: dict[str, str]) -> str:
    """Which parts were not measured, by the reason."""
    reasons = sorted(set(left_out.values()))
    places = {
        reason: [place.replace("/+", " at ").replace("/", " of ") for place in left_out
                 if left_out[place] == reason]
        for reason in reasons
    }  # fmt: skip
    return "Not measured: " + "; ".join(
        f"{', '.join(names)} ({reason})" for reason, names in places.items()
    )


def _noise(record: Record) -> Iterator[Rows]:
    models, targets = record.get("models", {}), record["targets"]
    if models:
        yield [
            ["in plain passes", *(f"{MODELS[name]}, {_size(of['num_parameters'])}"
                                  for name, of in models.items())],
            *(
                [label, *(_with_target(_rate(of, key), targets.get(name, {}).get(key), "≤")
                          for name, of in models.items())]
                for key, label in RATES.items()
            ),
            ["memory of `hooks` with errors, in that of a plain pass of the same chunk",
             *(_with_target(_number(of["memory"]["ratio"]), targets.get(name, {}).get("memory"),
                            "≤")
               if of.get("memory") and of["memory"]["ratio"] is not None else NONE
               for name, of in models.items())],
            ["a plain pass, examples a second",
             *(_number(of["rates"]["forward and backward"]["examples_per_second"])
               for of in models.values())],
        ]  # fmt: skip
    whole = [["all 60,000 examples of MNIST, with errors", ""]]
    if "seconds_with_errors" in record:
        whole.append(["seconds", _number(record["seconds_with_errors"])])
    if "peak_bytes" in record:
        whole.append(["peak memory above model and data, MiB", _mib(record["peak_bytes"])])
    if len(whole) > 1:
        yield whole
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
    targets = record["targets"]
    if "products" in record:
        products = record["products"]["in_gradients"]
        yield [
            ["a product, in gradient passes", "graph kept", "recorded anew", "target"],
            *(
                [label, _number(products[f"{key}, kept"]), _number(products[f"{key}, anew"]),
                 f"≤ {targets[key]:g}"]
                for key, label in (("hessian", "Hessian"), ("ggn", "Gauss–Newton"))
            ),
        ]  # fmt: skip
    if "largest_eigenvalue" in record:
        compared = record["largest_eigenvalue"]
        yield [
            ["λ_max by", "seconds", "products", "true relative error", "ours/theirs", "target"],
            *(
                [name, _number(of["seconds"]), str(of["num_matvecs"] or NONE),
                 f"{of['relative_error']:.0e}",
                 NONE if name == "ours" else _number(of["ours/theirs"]),
                 _solver_target(name, targets)]
                for name, of in compared["solvers"].items()
            ),
            *([name, reason, *[NONE] * 4] for name, reason in compared.get("missing", {}).items()),
        ]  # fmt: skip
    if "vocabulary" in record:
        yield [
            ["a Hessian product of cross-entropy", "through the softmax, ms", "closed form, ms",
             "ratio"],
            *(
                [f"{of['classes']:,} classes, {of['examples']:,} examples",
                 _number(1e3 * of["seconds"]["softmax"]),
                 _number(1e3 * of["seconds"]["closed form"]), _number(of["ratio"])]
                for of in record["vocabulary"]
            ),
        ]  # fmt: skip
    if "approach_to_smallest" in record:
        yield [
            ["λ_min in the whole Krylov space, after so many products", "off by", "residual"],
            *(
                [str(of["num_matvecs"]), f"{of['relative_error']:.0e}",
                 f"{of['relative_residual']:.0e}"]
                for of in record["approach_to_smallest"]
            ),
        ]  # fmt: skip
    rows = [["λ_max again, 100 steps later", "cold", "from the last eigenvectors", "ratio",
             "target"]]  # fmt: skip
    if (warm := record.get("warm_starts")) is not None:
        rows.append(
            ["products", str(sum(warm["cold"])), str(sum(warm["warm"])), _number(warm["ratio"]),
             f"≤ {targets['warm/cold']:g}"]
        )  # fmt: skip
    if (least := record.get("smallest_eigenvalue")) is not None:
        rows.append(
            ["products of λ_min (median)", _number(least["num_matvecs"]), "", "",
             f"≤ {targets['smallest']:g}"]
        )  # fmt: skip
    if "peak_bytes" in record:
        rows.append(
            ["peak memory above model and data, MiB", _mib(record["peak_bytes"]), "", "",
             f"≤ {_mib(targets['peak bytes'])}"]
        )  # fmt: skip
    if len(rows) > 1:
        yield rows


def _solver_target(name: str, targets: Record) -> str:
    target = _target_of_solver(name, targets)
    return NONE if target is None else f"≤ {target:g}"


def _target_of_solver(name: str, targets: Record) -> float | None:
    """Of a peer's solver at the tolerance at which it is as exact as ours."""
    if name.startswith("curvlinops"):
        return float(targets["curvlinops"])
    return float(targets["pyhessian"]) if name.endswith("1e-05") else None


def _training(record: Record) -> Iterator[Rows]:
    headings = ["B", "notebook", "eager", "ours", "ours/notebook", "target"]
    headings += ["ours/eager (quartiles)", "target", "in place/stored, products alone"]
    quartiles = "{median:.2f} ({low:.2f}–{high:.2f})"
    yield [
        headings,
        *(
            [
                str(row["batch_size"]),
                *(_number(row["steps_per_second"][name]) for name in ("notebook", "eager", "ours")),
                _number(row["ratio"]["notebook"]["median"]),
                f"≥ {row['notebook_target']:g}" if row.get("notebook_target") else NONE,
                quartiles.format(**row["ratio"]["eager"]),
                f"≥ {row['target']:g}",
                quartiles.format(**row["limit"]) if "limit" in row else NONE,
            ]
            for row in record.get("rows", [])
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
            for number, row in enumerate(record.get("results", []))
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
            for name, row in record.get("models", {}).items()
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
            for name, row in record.get("norm_layers", {}).items()
        ),
    ]
    if "processes" not in record:
        return
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
    targets = record["targets"]
    if "commands" in record:
        yield [
            ["command, with its defaults", "seconds", "target", "runs"],
            *(
                [f"`noisescale {of['command']}`", _number(of["seconds"]), f"≤ {of['target']:g}",
                 str(of["runs"])]
                for of in record["commands"]
            ),
        ]  # fmt: skip
    rows = [["what", "against", "ratio", "target", ""]]
    if (processes := record.get("processes")) is not None:
        one, two = (float(np.median(processes["seconds"][count])) for count in ("1", "2"))
        rows.append(
            ["two local processes", "one", f"{processes['speed_up']:.2f} times as fast",
             f"≥ {targets['processes']:g}",
             f"{processes['cells']} cells, {two:.0f} and {one:.0f} s, the start of Python included"]
        )  # fmt: skip
    if (bisection := record.get("bisection")) is not None:
        rows.append(
            ["bisection", "the whole grid", f"{100 * bisection['share']:.0f} % of the runs",
             f"≤ {100 * targets['bisection']:g} %",
             f"{bisection['runs']} of {bisection['runs_of_grid']} runs, for edges within "
             f"{max(bisection['grid_steps_apart']):.2f} grid steps"]
        )  # fmt: skip
    rows += [
        [f"{row['replicas']} vmapped replicas, B = {row['batch_size']}", "single runs",
         f"{row['replicas/eager']:.2f} times the updates", f"≥ {targets['replicas']:g}", ""]
        for row in record.get("replicas", [])
    ]  # fmt: skip
    yield rows


def _startup(record: Record) -> Iterator[Rows]:
    if (results := record.get("results")) is None:
        return
    yield [
        ["what", "against", "seconds more", "target", "seconds in all"],
        *(
            [f"`{name}`" if name != "worker" else "a worker's start", f"`{of['bare']}` alone",
             f"{of['seconds']:.3f}", f"≤ {of['target']:g}",
             f"{results['cpu_seconds'][name]:.2f}"]
            for name, of in results["added"].items()
        ),
    ]  # fmt: skip


def _scaling(record: Record) -> Iterator[Rows]:
    yield [
        ["seconds of", "against", "from", "to", "exponent"],
        *(
            [LABELS[of["what"]], f"{AXES[of['against']]} ({of['problem']})",
             f"{of['values'][0]:,}: {_seconds(of['seconds'][0])}",
             f"{of['values'][-1]:,}: {_seconds(of['seconds'][-1])}",
             "{value:.2f} ± {stderr:.2f}".format(**of["exponent"])]
            for of in record.get("curves", [])
        ),
    ]  # fmt: skip
    if (processes := record.get("processes")) is not None:
        yield [
            ["seconds of", "one process", "two", "ratio"],
            [LABELS["noise"], *(_seconds(processes["seconds"][count]) for count in ("1", "2")),
             _number(processes["speed_up"])],
        ]  # fmt: skip


def _figures_of_noise(record: Record) -> Iterator[Figure]:
    targets = record["targets"]
    for name, of in record.get("models", {}).items():
        for key, target in targets.get(name, {}).items():
            if key == "memory" and (ratio := (of.get("memory") or {}).get("ratio")):
                yield Figure(f"{MODELS[name]}: memory in plain passes", ratio, "≤", target)
            elif key in of["rates"]:
                ratio = of["rates"][key]["in_gradients"]
                yield Figure(f"{MODELS[name]}: {RATES[key]}, in plain passes", ratio, "≤", target)
    if (geometry := record.get("geometry")) is not None:
        ratio, target = geometry["ratio"]["median"], geometry["target"]
        yield Figure("both geometries in the plain one", ratio, "≤", target)


def _figures_of_curvature(record: Record) -> Iterator[Figure]:
    targets = record["targets"]
    ratios = record.get("products", {}).get("in_gradients", {})
    for key, label in (("hessian", "Hessian"), ("ggn", "Gauss–Newton")):
        if (name := f"{key}, anew") in ratios:
            what = f"{label} product recorded anew, in gradients"
            yield Figure(what, ratios[name], "≤", targets[key])
    for name, of in record.get("largest_eigenvalue", {}).get("solvers", {}).items():
        if (target := _target_of_solver(name, targets)) is not None:
            yield Figure(f"λ_max, time in that of {name}", of["ours/theirs"], "≤", target)
    if (warm := record.get("warm_starts")) is not None:
        what = "λ_max, products from a warm start in those from a cold one"
        yield Figure(what, warm["ratio"], "≤", targets["warm/cold"])
    if (least := record.get("smallest_eigenvalue")) is not None:
        yield Figure("λ_min, products", least["num_matvecs"], "≤", targets["smallest"])


def _figures_of_training(record: Record) -> Iterator[Figure]:
    for row in record.get("rows", []):
        what = f"steps in those of eager SGD, B = {row['batch_size']}"
        yield Figure(what, row["ratio"]["eager"]["median"], "≥", row["target"])
        if (target := row.get("notebook_target")) is not None:
            what = f"steps in those of a notebook's loop, B = {row['batch_size']}"
            yield Figure(what, row["ratio"]["notebook"]["median"], "≥", target)
    if (adamw := record.get("adamw")) is not None:
        what = f"steps in those of fused AdamW, B = {adamw['batch_size']}"
        yield Figure(what, adamw["ratio"]["fused"]["median"], "≥", adamw["target"])
    if (epoch := record.get("epoch_at_batch_size_one")) is not None:
        yield Figure("seconds of an epoch at B = 1", epoch["seconds"])


def _figures_of_monitor(record: Record) -> Iterator[Figure]:
    for row in record.get("results", [])[:1]:
        what = f"per cent of a step of {row['micro_batches']} × {row['examples']}"
        yield Figure(what, 100 * row["looking"], "≤", 100 * record["target"])


def _figures_of_monitor_sizes(record: Record) -> Iterator[Figure]:
    targets = record["targets"]
    for place, name, key, label in (
        ("models", "mlp", "monitor", "monitor"),
        ("norm_layers", "transformer", "norm layers", "norm-layer monitor"),
    ):
        if (row := record.get(place, {}).get(name)) is not None:
            what = f"{MODELS[name]}: per cent of a step, {label}"
            yield Figure(what, 100 * row["overhead"], "≤", 100 * targets[key])


def _figures_of_sweep(record: Record) -> Iterator[Figure]:
    targets = record["targets"]
    for of in record.get("commands", []):
        yield Figure(f"seconds of {of['command']}", of["seconds"], "≤", of["target"])
    if (processes := record.get("processes")) is not None:
        what = "speed of two processes in that of one"
        yield Figure(what, processes["speed_up"], "≥", targets["processes"])
    if (bisection := record.get("bisection")) is not None:
        what = "runs of bisection in those of the grid"
        yield Figure(what, bisection["share"], "≤", targets["bisection"])
    for row in record.get("replicas", []):
        what = f"updates of {row['replicas']} replicas in eager ones, B = {row['batch_size']}"
        yield Figure(what, row["replicas/eager"], "≥", targets["replicas"])


def _figures_of_startup(record: Record) -> Iterator[Figure]:
    for name, of in record.get("results", {}).get("added", {}).items():
        yield Figure(f"seconds of {name} beside {of['bare']}", of["seconds"], "≤", of["target"])


def _figures_of_scaling(record: Record) -> Iterator[Figure]:
    for of in record.get("curves", []):
        what = f"exponent of {LABELS[of['what']]} in {of['against']} ({of['problem']})"
        yield Figure(what, of["exponent"]["value"])


FIGURES: dict[str, Callable[[Record], Iterable[Figure]]] = {
    "noise": _figures_of_noise,
    "curvature": _figures_of_curvature,
    "training": _figures_of_training,
    "monitor": _figures_of_monitor,
    "monitor_sizes": _figures_of_monitor_sizes,
    "sweep": _figures_of_sweep,
    "startup": _figures_of_startup,
    "scaling": _figures_of_scaling,
}
TABLES: dict[str, Callable[[Record], Iterator[Rows]]] = {
    "noise": _noise,
    "curvature": _curvature,
    "training": _training,
    "monitor": _monitor,
    "monitor_sizes": _monitor_sizes,
    "sweep": _sweep,
    "startup": _startup,
    "scaling": _scaling,
}


def _rate(model: Record, key: str) -> str:
    """What a way to the gradients takes of a model, in plain passes."""
    if key not in model["rates"]:
        reason = model["not_covered"].get(key, NONE)
        return "not covered" if ":" in reason else reason  # an error's type, or "… not installed"
    return _number(model["rates"][key]["in_gradients"])


def _with_target(text: str, target: float | None, sign: str) -> str:
    return text if target is None else f"{text} (target {sign} {target:g})"


def _number(value: float) -> str:
    """Three significant digits; all of them from a thousand on."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _seconds(value: float) -> str:
    """In milliseconds below one."""
    return f"{_number(1e3 * value)} ms" if value < 1 else f"{_number(value)} s"


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
