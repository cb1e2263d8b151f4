"""The command line in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from noisescale.cli import main

SMALL = ["train", "--dataset", "digits", "--width", "8", "--epochs", "1"]


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def strict(text: str) -> Any:
    """The content of JSON that has no NaN and no Infinity in it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
