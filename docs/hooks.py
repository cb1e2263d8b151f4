"""What the site shows of the rest of the repository: figures, tables, results, notebooks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHOWN = {  # where the files of a folder come to lie on the site
    "figures": (ROOT / "paper_figures" / "pictures", "*.png"),
    "tables": (ROOT / "paper_figures" / "data", "**/*.csv"),
    "results": (ROOT / "experiments" / "benchmarks" / "results", "*.json"),
}


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the figures, tables and results, and the pages that lie at the top of the repository."""
    for place, (folder, pattern) in SHOWN.items():
        for path in sorted(folder.glob(pattern)):
            name = f"{place}/{path.relative_to(folder).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    contributing = ROOT / "CONTRIBUTING.md"
    files.append(File.generated(config, "contributing.md", content=contributing.read_text()))
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        page = notebook_page(json.loads(path.read_text()))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as a page: its words, its code, and what that gave."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", source))  # links between them
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """The richest form that an output has."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="What the cell draws" src="data:image/png;base64,{data["image/png"]}">'
    if "text/html" in data:
        return "".join(line for line in data["text/html"] if line.strip())
    text = "".join(data.get("text/plain", output.get("text", [])))
    return f"```text\n{text.rstrip()}\n```"
