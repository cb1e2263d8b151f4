"""Help by subject, and usage errors that name their command."""

import re
import shlex

import click
import pytest

from noisescale.cli import main
from noisescale.cli.help import OTHER_NAMES, SUBJECTS, Command, subject_of
from tests.helpers.command_line import run

COMMANDS = sorted(main.commands)


def sections(name):
    command = main.commands[name]
    return list(command.sections(click.Context(command, info_name=name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_under_its_subject(name):
    """Or nobody would look for it among those that have none."""
    command = main.commands[name]
    assert isinstance(command, Command)
    flags = [
        max(param.opts, key=len) for param in command.params if isinstance(param, click.Option)
    ]
    assert [flag for flag in flags if subject_of(name, flag) is None] == []
    headings = [heading for heading, _ in sections(name)]
    assert "Options" not in headings
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_section_can_be_typed(name):
    command = main.commands[name]
    for heading, records in sections(name):
        _, _, example = heading.partition(", as in ")
        assert example, f"{heading!r} has no example"
        context = click.Context(command, info_name=name)
        arguments = [param for param in command.params if isinstance(param, click.Argument)]
        paths = ["."] * len(arguments)
        command.parse_args(context, [*shlex.split(example), *paths])
        flags = re.findall(r"--[\w-]+", example)
        assert any(flag in record for flag in flags for record, _ in records), heading


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_can_be_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/NAME-KEY", "sweep", "critical"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("sharpness.json", "noise.json", "runs/NAME-KEY/noise.csv", "runs.csv"):
        (tmp_path / file).touch()
    command = main.commands[name]
    lines = re.findall(rf"^  noisescale {name}(?: (.*?))?(?:  .*|>.*)?$", command.epilog, re.M)
    assert lines
    for line in lines:
        command.parse_args(click.Context(command, info_name=name), shlex.split(line))


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_wide_as_the_terminal_up_to_120(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    context = click.Context(main, info_name="noisescale", **main.context_settings)
    command = main.commands[name]
    text = command.get_help(click.Context(command, info_name=name, parent=context))
    longest = max((line for line in text.splitlines() if "noisescale" not in line), key=len)
    assert len(longest) <= min(columns, 120)
    assert text.index("Examples:") > text.index("--help")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "--batch-size", "3"], "--bs"),
        (["train", "--learning_rate", "3"], "--lr"),
        (["sweep-lr", "--iterations", "3"], "--steps"),
        (["train", "--iterations", "3"], "--max-steps"),
        (["measure-noise", "x.pt", "--num-samples", "3"], "--num-examples"),
        (["sharpness", "x.pt", "--batch-size", "3"], "--batch-sharpness"),
        (["critical-batch", "--num-seeds=3"], "--seeds"),
    ],
)
def test_what_others_call_an_option_is_told_by_its_name_here(arguments, meant):
    result = run(*arguments)
    assert result.exit_code == 2
    given = re.split("=", arguments[-1] if "=" in arguments[-1] else arguments[-2])[0]
    assert f"No such option '{given}'. Did you mean {meant}?" in result.stderr
    assert f"noisescale {arguments[0]} --help" in result.stderr.replace("main ", "noisescale ")


def test_other_names_mean_options_that_there_are():
    flags = {
        flag
        for command in main.commands.values()
        for param in command.params
        for flag in param.opts
    }
    assert {flag for meant in OTHER_NAMES.values() for flag in meant} <= flags
    listed = {flag for subject in SUBJECTS for flag in re.findall(r"--[\w-]+", subject.flags)}
    assert listed - flags <= {"--help", "--minutes"}


def test_an_unknown_option_that_nothing_is_like_is_left_as_it_is():
    result = run("train", "--xyz")
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--dataset", "digits", "--bs", "100000"],
        ["train", "--noise-hessian"],
        ["sweep-lr", "--bisect", "--num-lr", "3"],
        ["critical-batch", "--method", "branch"],
        ["sharpness", "x.pt", "--top", "0"],
    ],
)
def test_a_usage_error_found_after_parsing_names_its_command(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    first = result.stderr.splitlines()[0]
    assert first.startswith("Usage: ")
    assert f" {arguments[0]} [OPTIONS]" in first
