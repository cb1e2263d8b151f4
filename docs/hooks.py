"""What the site shows of the rest of the repository: figures, tables, results, CONTRIBUTING.md."""

from __future__ import annotations

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
    return files
