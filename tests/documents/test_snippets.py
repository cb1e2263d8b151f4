"""What README and the site's pages print to be copied runs, and names options that there are."""

import re
import runpy
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from torch import nn

from noisescale.cli import main
from tests.helpers.paths import ROOT

GUIDES = [
    ROOT / "README.md",
    ROOT / "docs" / "getting-started.md",
    *(ROOT / "docs").glob("how-to/*.md"),
]
PAGES = [*GUIDES, *(ROOT / "docs").glob("concepts/*.md"), *(ROOT / "docs").glob("findings/*.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = 'if __name__ == "__main__":'  # starts processes that import it
# what a snippet needs that tests do not have: a cluster, a scaler, a logger
ELSEWHERE = re.compile(r"dask_jobqueue|scaler|accelerator|TensorBoardLogger")


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def surroundings() -> dict[str, object]:
    """What a reader has before a snippet begins: a model, data, an optimizer, a table of runs."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(20, 3)
    inputs = torch.randn(64, 20, generator=generator)
    targets = torch.randint(0, 3, (64,), generator=generator)
    sizes = np.repeat([1.0, 8.0, 64.0, 512.0], 2)
    return {
        "model": model,
        "transformer": nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 3)),  # or any with such layers
        "loss": nn.functional.cross_entropy,
        "loss_per_example": nn.CrossEntropyLoss(reduction="none"),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "inputs": inputs,
        "targets": targets,
        "batches": [list(zip(inputs.split(16), targets.split(16), strict=True))] * 20,
        "batch_sizes": sizes,
        "steps": 100 * (1 + 30 / sizes) * np.tile([0.97, 1.03], 4),
        "seeds": np.tile([0, 1], 4),
        "censored": np.zeros(8, dtype=bool),
    }


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_python_runs_in_the_order_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = surroundings()
    for code in blocks(page, "python"):
        if SCRIPT not in code and not ELSEWHERE.search(code):
            exec(compile(code, page.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_scripts_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(code for code in blocks(page, "python") if SCRIPT in code):
        script = tmp_path / f"script{number}.py"
        script.write_text(code)
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page):
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["noisescale"]:
            assert unknown(main, words[1:]) == [], line


def unknown(command: click.Command, words: list[str]) -> list[str]:
    """The words that name a subcommand or an option which a command does not have."""
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        return [words[0]] if found is None else unknown(found, words[1:])
    options = {
        "--help",
        *(name for param in command.params for name in (*param.opts, *param.secondary_opts)),
    }
    return [
        word for word in words if word.startswith("--") and word.partition("=")[0] not in options
    ]


def test_an_option_that_is_not_there_is_found():
    assert unknown(main, ["train", "--bs", "32", "--batch"]) == ["--batch"]
    assert unknown(main, ["trian"]) == ["trian"]
