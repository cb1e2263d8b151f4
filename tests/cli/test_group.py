"""What a command raises becomes one message and an exit code; the traceback where asked for."""

import errno

import click
import pytest
from click.testing import CliRunner

from noisescale.cli import main
from noisescale.cli.group import Commands
from noisescale.errors import Interrupted, MeasurementError, SettingError
from noisescale.problems.factory import load_problem

OWN = """
import noisescale

class Model:
    def __getattr__(self, name):
        raise LookupError("my own words")

def make():
    return Model()
"""


def raising(error):
    """A group with a command that raises this."""

    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def work():
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SettingError("lr 0: give more"), 2, "Error: lr 0: give more"),
        (MeasurementError("not defined"), 1, "Error: not defined"),
        (MemoryError(), 1, "not enough memory, give a smaller model or batch (MemoryError)"),
        (RuntimeError("CUDA out of memory"), 1, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left", "a.csv"), 1, "a.csv: No space left; what is al"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "Error: Broken pipe"),  # not stdout's
        (KeyError("loss"), 1, "KeyError: 'loss': this is a fault of the program itself"),
        (RecursionError("too deep"), 1, "a fault of the program itself"),
        (Interrupted("stopped", 15), 143, "stopped"),
        (KeyboardInterrupt(), 130, "Stopped at once: what is already written is whole."),
    ],
)
@pytest.mark.parametrize("debug", [None, "before", "after", "environment"])
def test_every_failure_is_one_message_and_an_exit_code(error, code, message, debug):
    arguments = {"before": ["--debug", "work"], "after": ["work", "--debug"]}.get(debug, ["work"])
    variables = {"NOISESCALE_DEBUG": "1" if debug == "environment" else "0"}
    result = CliRunner().invoke(raising(error), arguments, env=variables)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    told = debug is not None and not isinstance(error, Interrupted | KeyboardInterrupt)
    assert ("Traceback" in result.stderr) is told


def test_the_users_own_code_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def work():
        load_problem("mine.py:make")

    monkeypatch.setattr("noisescale.problems.factory.isinstance", touch, raising=False)
    result = CliRunner().invoke(group, ["work"])
    assert result.exit_code == 1
    assert (
        "your own code fails: LookupError: my own words (mine.py, line 6, in __getattr__); "
        "--debug (or NOISESCALE_DEBUG=1) shows how it came to that"
    ) in " ".join(result.stderr.split())


def touch(value, kind):
    """In place of a look at what the user's factory made: one that runs code of the user's own."""
    return value.train


def test_the_traceback_of_a_setting_that_a_command_refuses_is_shown_too():
    arguments = ["train", "--dataset", "digits", "--lr", "-1"]
    plain, debugged = (CliRunner().invoke(main, [*more, *arguments]) for more in ([], ["--debug"]))
    assert plain.exit_code == debugged.exit_code == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debugged.stderr
    assert "train [OPTIONS]" in debugged.stderr
