"""What other hands run is what .ci/run runs: the hosted workflow, the hooks before a commit."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.helpers.paths import ROOT

yaml = pytest.importorskip("yaml")

CHECK = (ROOT / ".ci" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def jobs() -> dict[str, dict]:
    """Every job of every workflow, by name."""
    read = [yaml.safe_load(path.read_text()) for path in WORKFLOWS]
    return {name: job for workflow in read for name, job in workflow["jobs"].items()}


def commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_readme_is_what_the_workflow_runs():
    marked = re.findall(
        r"^<!-- ci -->\n```sh\n(.*?)\n```$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert commands(jobs()["newcomer"]) == marked[:1]
    assert commands(jobs()["all"]) == marked[1:]


@pytest.mark.parametrize("name", ["lint", "fast"])
def test_a_job_runs_what_the_check_runs(name):
    fast = re.search(r'^fast="(.*)"$', CHECK, re.MULTILINE)[1]
    for command in commands(jobs()[name]):
        known = command.replace(fast, "$fast").partition(" ${{")[0].removeprefix("pip ")
        assert known in CHECK


def test_the_jobs_give_pytest_the_options_of_the_check():
    options = re.search(r"^pytest=\((.*) \"--basetemp.*\)$", CHECK, re.MULTILINE)[1]
    coverage = re.search(r"^coverage=(\d+)", CHECK, re.MULTILINE)[1]
    cover = re.search(r"\$\{pytest\[\*\]\} (--cov .*)\"$", CHECK, re.MULTILINE)[1]
    fast, everything = (
        jobs()[name]["steps"][-1]["env"]["PYTEST_ADDOPTS"] for name in ("fast", "all")
    )
    assert fast == options
    assert everything == f"{options} {cover.replace('$coverage', coverage)}"


def test_the_fast_tests_run_with_the_oldest_torch_on_two_pythons():
    matrix = jobs()["fast"]["strategy"]["matrix"]
    oldest = [
        need.split(" ")[0].replace(">=", "==")
        for need in PROJECT["project"]["dependencies"]
        if need.startswith(("torch>=", "torchvision>="))
    ]
    assert matrix["include"] == [{"torch": "oldest", "floor": " ".join(oldest)}]
    assert f">={matrix['python'][0]}" == PROJECT["project"]["requires-python"]
    assert len(matrix["python"]) == len(matrix["torch"]) == 2


def test_the_site_is_built_as_the_tests_build_it():
    assert commands(jobs()["docs"])[-1] == "mkdocs build --strict"


def test_hooks_are_the_programs_of_the_environment():
    hooks = [hook for repo in HOOKS["repos"] for hook in repo["hooks"]]
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]  # no versions of their own
    assert {hook["language"] for hook in hooks} == {"system"}
    needed = PROJECT["project"]["optional-dependencies"]["dev"]
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        assert program in {need.split(">=")[0] for need in needed}
        checked = " ".join(word for word in arguments if word != "--force-exclude")
        assert f"{program} {checked}".strip() in CHECK


@pytest.mark.slow
@pytest.mark.processes
def test_the_hooks_pass_on_a_file_of_ours(tmp_path):
    try:
        version("pre-commit")
    except PackageNotFoundError:
        pytest.skip("pre-commit is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--files", "noisescale/errors.py"],
        cwd=ROOT,
        env={**os.environ, "SKIP": "mypy"},  # which reads everything, as the check does anyway
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("Passed") == len(HOOKS["repos"][0]["hooks"]) - 1
