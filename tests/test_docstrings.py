"""The docstrings of the public names: Google style, with every parameter and field named.

The linter checks the style; a section that is missing altogether passes it, and is asked for here.
"""

import dataclasses
import inspect
import re

import pytest

import noisescale
from tests.helpers.public_names import DOCUMENTED


def section(docstring, title):
    """The names that a section of a docstring explains, None where there is no such section."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    if f"{title}:" not in lines:
        return None
    names = []
    for line in lines[lines.index(f"{title}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if match := re.match(r" {4}\*{0,2}(\w+)(?: \([^)]*\))?:(?: |$)", line):
            names.append(match[1])
    return names


def parameters(function):
    names = list(inspect.signature(function).parameters)
    return [name for name in names if name not in ("self", "cls")]


def documented():
    """Each public function, class and method: docstring, the section it owes, the names in it."""
    for name in DOCUMENTED:
        value = getattr(noisescale, name)
        if not inspect.isclass(value):
            yield pytest.param(value.__doc__, "Args", parameters(value), id=name)
            continue
        if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            yield pytest.param(value.__doc__, "Attributes", fields, id=name)
        elif hasattr(value, "_fields"):
            yield pytest.param(value.__doc__, "Attributes", list(value._fields), id=name)
        elif not issubclass(value, Exception):
            yield pytest.param(value.__doc__, "Args", parameters(value), id=name)
        for method_name, method in vars(value).items():
            method = getattr(method, "__func__", method)
            if not method_name.startswith("_") and inspect.isfunction(method):
                yield pytest.param(
                    method.__doc__, "Args", parameters(method), id=f"{name}.{method_name}"
                )


@pytest.mark.parametrize(("docstring", "title", "names"), list(documented()))
def test_a_public_docstring_names_every_parameter_in_order(docstring, title, names):
    assert docstring
    explained = section(docstring, title)
    assert (explained or []) == names


def test_a_section_is_read_as_it_is_written():
    docstring = """Sum.

    Args:
        a: the first,
            on two lines: like this.
        b (int): the second.
        *rest: others.

    Returns:
        c: no argument.
    """
    assert section(docstring, "Args") == ["a", "b", "rest"]
    assert section(docstring, "Attributes") is None
