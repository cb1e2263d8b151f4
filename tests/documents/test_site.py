"""The documentation is whole: every public name has its entry, and the site builds strictly."""

import os
import re
import subprocess
import sys

import pytest

import noisescale
from tests.helpers.paths import ROOT

REFERENCE = ROOT / "docs" / "reference"


def test_every_public_name_has_one_entry():
    text = "".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    entries = re.findall(r"^::: noisescale\.(\w+)$", text, re.MULTILINE)
    assert sorted(entries) == sorted(name for name in dir(noisescale) if not name.startswith("_"))


def test_readme_is_a_page_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.processes
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(
        build, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "findings" / "growing-noise" / "index.html").read_text()
    assert "../../figures/noise_growth.png" in page
    assert (tmp_path / "figures" / "noise_growth.png").exists()
