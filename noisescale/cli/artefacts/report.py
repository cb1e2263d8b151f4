"""One page of whatever the commands have left: `noisescale report`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from noisescale.cli.artefacts.sources import ALLOWED, DAMAGED, sources
from noisescale.errors import NoisescaleError, SettingError, own_words

SUFFIXES = (".html", ".htm")
LOOKED_AT = 4096  # bytes of a file, in which a page of ours says that it is one


class Written(NamedTuple):
    """A page that was written, None where nothing could be shown, and what could not be."""

    path: Path | None
    failures: list[str]


def write_report(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], out: str | PathLike[str]
) -> Path:
    """One page of HTML of runs, studies and measurements; `noisescale report` calls it.

    Of each path: what its command prints, its pictures, settings and environment, and the command
    that makes it. The page needs no other file, no network and no script.

    Args:
        paths: the folder of a run or of a study, finished or not, a folder of such, a JSON file
            that measure-noise or sharpness printed, or a table; or several of these.
        out: the page, a file that ends in .html. Its folder is made where it is missing, and an
            earlier report replaced.

    Returns:
        The path of the page.

    Raises:
        SettingError: `out` ends otherwise, or holds something else than a report.
        NoisescaleError: a path is nothing that can be shown, or damaged. The page, if there is
            anything to show, is written before, and says what is wrong where it stands.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from noisescale import ProblemConfig, TrainConfig, run_training, write_report
        >>> folder = Path(mkdtemp())
        >>> problem = ProblemConfig(dataset="digits", width=8)
        >>> summary = run_training(problem, TrainConfig(epochs=1), folder / "run")
        >>> write_report(folder / "run", folder / "report.html").name
        'report.html'
    """
    given = [Path(paths)] if isinstance(paths, str | PathLike) else [Path(path) for path in paths]
    written = report(given, Path(out))
    if written.failures or written.path is None:
        raise NoisescaleError("\n".join(written.failures) or f"no path is given; {ALLOWED}")
    return written.path


def report(paths: list[Path], out: Path) -> Written:
    """Writes the page of these paths; SettingError where it cannot be written to `out`."""
    from noisescale.cli.artefacts.page import Section, page
    from noisescale.cli.artefacts.sections import show, title_of
    from noisescale.training.records.folder import write_atomically

    _check_page(out)
    failures, found = [], []
    for path in paths:
        if found_there := list(sources(path)):
            found += found_there
        else:
            failures.append(f"{path}: nothing to show in it; {ALLOWED}")
    sections, shown = [], False
    for number, source in enumerate(dict.fromkeys(found), start=1):
        section = Section(f"part-{number}", path=str(source))
        try:
            show(section, source)
            shown = True
        except (NoisescaleError, OSError, *DAMAGED) as error:
            said = str(error) if isinstance(error, NoisescaleError) else own_words(error)
            said = said if str(source) in said else f"{source}: {said}"
            section.warn(f"Not shown: {said}")
            failures.append(said)
        sections.append(section)
    if not shown:
        return Written(None, failures)
    given = " ".join(shlex.quote(str(path)) for path in paths)
    command = f"noisescale report {given} --out {shlex.quote(str(out))}"
    write_atomically(out, page(title_of(sections), sections, command=command).encode())
    return Written(out, failures)


def _check_page(out: Path) -> None:
    """SettingError where a page is not to be written there."""
    from noisescale.cli.artefacts.page import GENERATOR

    if out.suffix not in SUFFIXES or out.is_dir():
        raise SettingError(f"--out {str(out)!r}: give a file name that ends in .html")
    if out.exists():
        with out.open("rb") as file:
            if GENERATOR.encode() not in file.read(LOOKED_AT):
                raise SettingError(
                    f"{out} exists and is no report of noisescale's: give another --out, or move "
                    "that file away"
                )
