"""Notebooks without a kernel: their cells are run in order, in one namespace, as they would be.

`python -m tests.helpers.notebooks` writes into each notebook what its cells give.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
Output = dict[str, Any]  # as the format of notebooks has it


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write(path: Path, notebook: dict[str, Any]) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any]) -> list[list[Output]]:
    """The outputs of each cell of code; what a cell raises is raised."""
    plt.switch_backend("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    return [
        _run_cell("".join(cell["source"]), names, number)
        for number, cell in enumerate(code_cells(notebook), start=1)
    ]


def _run_cell(source: str, names: dict[str, Any], number: int) -> list[Output]:
    """What the cell prints, the value of a last line that is one, and the figures it leaves."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[Output] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        outputs.append(_shown(value, number))
    outputs += [_picture(plt.figure(figure)) for figure in plt.get_fignums()]
    plt.close("all")
    return outputs


def _picture(figure: Figure) -> Output:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def _shown(value: Any, number: int) -> Output:
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    shown = {"data": data, "metadata": {}, "output_type": "execute_result"}
    return {**shown, "execution_count": number}


def main() -> None:
    for path in NOTEBOOKS:
        notebook = read(path)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            outputs = run(notebook)
        for number, cell in enumerate(code_cells(notebook), start=1):
            cell.update(execution_count=number, outputs=outputs[number - 1])
        write(path, notebook)
        print(path)


if __name__ == "__main__":
    main()
