"""stdout and stderr as shells and batch systems leave them."""

import io
import subprocess
import sys

import pytest

from noisescale.cli.streams import SUBSTITUTES, readable, streams
from tests.helpers.processes import environment

TABLE = "batch_size,steps\n1,1000\n2,600\n4,350\n8,220\n16,150\n"


def shell(command, cwd, **variables):
    """A command line in a shell, `noisescale` the command, and TABLE in a file of that name."""
    (cwd / "TABLE").write_text(TABLE)
    program = f"{sys.executable} -m noisescale"
    return subprocess.run(
        ["bash", "-c", command.replace("noisescale", program, 1)],
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "code", "stdout", "stderr"),
    [
        ("noisescale critical-batch --from-csv TABLE >&-", 0, b"", b""),
        ("noisescale critical-batch --from-csv TABLE >&- 2>&-", 0, b"", b""),
        ("noisescale critical-batch --from-csv TABLE 2>/dev/full", 0, b"B_crit", b""),
        ("noisescale critical-batch --from-csv NONE 2>/dev/full", 2, b"", b""),
        ("noisescale critical-batch --from-csv TABLE >/dev/full", 1, b"", b"stdout: No space left"),
        ("noisescale critical-batch --from-csv TABLE | true; exit ${PIPESTATUS[0]}", 1, b"", b""),
        ("noisescale critical-batch --from-csv - <TABLE", 0, b"B_crit", b""),
        ("noisescale critical-batch --from-csv <(cat TABLE)", 0, b"B_crit", b""),
        ("noisescale critical-batch --from-csv $'\\xff'", 2, b"", b"is not UTF-8"),
        ("mkdir $'\\xff'; cd $'\\xff'; noisescale plot .", 2, b"", b"is not UTF-8"),
    ],
)
def test_every_kind_of_stream_and_name_is_met(command, code, stdout, stderr, tmp_path):
    done = shell(command, tmp_path)
    assert done.returncode == code, (command, done)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert stdout in done.stdout
    assert stderr in done.stderr
    if not stderr and code == 0:
        assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_has_substitutes_for_what_it_lacks(encoding, tmp_path):
    done = shell("noisescale critical-batch --from-csv TABLE", tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done
    text = done.stdout.decode(encoding)
    assert "−" in text if encoding == "utf-8" else "(S/S_min - 1)(E/E_min - 1) = 1" in text
    assert "?" not in text


def test_substitutes_are_ascii_and_the_rest_is_never_an_error():
    assert all(text.isascii() for text in SUBSTITUTES.values())
    for character in (*SUBSTITUTES, "é", "ø", "実", "\N{PILE OF POO}", "\ud800"):
        error = UnicodeEncodeError("ascii", f"a{character}b", 1, 2, "ordinal not in range")
        replacement, end = readable(error)
        assert replacement.isascii()
        assert replacement
        assert end == 2
    assert readable(UnicodeEncodeError("ascii", "é", 0, 1, ""))[0] == "e"
    assert readable(UnicodeEncodeError("ascii", "κ", 0, 1, ""))[0] == "kappa"
    # the bytes of a file name that is not UTF-8
    assert readable(UnicodeEncodeError("utf-8", "\udcff\udc80", 0, 2, ""))[0] == b"\xff\x80"


def test_what_stderr_does_not_take_is_lost_and_what_stdout_does_not_is_raised(monkeypatch):
    class Full(io.StringIO):
        errors = "strict"

        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(sys, "stdout", Full())
    with streams():
        print("a note", file=sys.stderr, flush=True)
        with pytest.raises(OSError, match="No space left"):
            print("the result")
    assert type(sys.stderr) is Full
