"""The parameters of a model in groups, each of which has a noise scale of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Tensor, nn

from noisescale.errors import SettingError
from noisescale.statistics.display import counted

Grouping = Literal["type", "layer"] | Mapping[str, str | Iterable[str]]
WHOLE = "all"  # the one group where none are asked for
OTHERS = "other"  # parameters that no pattern matches


class Groups:
    """Parameters, and the group of each.

    parameters: each once, however many names it has; some may not require a gradient now.
    names: of the groups. of: the place of each parameter's group among them.
    by_group: whether groups were asked for.
    """

    def __init__(
        self, parameters: nn.Module | Iterable[Tensor], groups: Grouping | None = None
    ) -> None:
        self.by_group = groups is not None
        if groups is None:
            whole = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
            self.parameters = list({id(parameter): parameter for parameter in whole}.values())
            self.names = [WHOLE]
            self.of = [0] * len(self.parameters)
            return
        if not isinstance(parameters, nn.Module):
            raise SettingError(
                "groups of parameters without names: give the model itself, as in "
                "NoiseScaleMonitor(model, groups=...)"
            )
        owners = _owners(parameters)
        self.parameters = [parameter for _, _, parameter in owners]
        if isinstance(groups, str):
            chosen = _by_module(owners, groups)
        else:
            chosen = _by_pattern([name for _, name, _ in owners], groups)
        self.names = list(dict.fromkeys(chosen))
        self.of = [self.names.index(name) for name in chosen]


def _owners(model: nn.Module) -> list[tuple[tuple[str, nn.Module], str, nn.Parameter]]:
    """Of each parameter: the module that holds it and its name, the parameter's name, itself."""
    seen: set[int] = set()
    owners = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                owners.append(((path, module), name, parameter))
    return owners


def _by_module(
    owners: list[tuple[tuple[str, nn.Module], str, nn.Parameter]], groups: str
) -> list[str]:
    """The group of each parameter: the type or the name of the module that holds it."""
    if groups not in get_args(get_args(Grouping)[0]):
        raise SettingError(
            f'groups {groups!r}: give "type", "layer" or a table of names and patterns, such as '
            '{"attention": "*.attn.*"}'
        )
    if groups == "type":
        return [type(module).__name__.removeprefix("FSDP") for (_, module), _, _ in owners]
    return [path or type(module).__name__ for (path, module), _, _ in owners]


def _by_pattern(names: list[str], groups: Mapping[str, str | Iterable[str]]) -> list[str]:
    """The group of each parameter by name: the one whose pattern matches it."""
    patterns = {
        group: [given] if isinstance(given, str) else list(given) for group, given in groups.items()
    }
    chosen = []
    for name in names:
        fitting = [
            group
            for group, given in patterns.items()
            if any(fnmatchcase(name, pattern) for pattern in given)
        ]
        if len(fitting) > 1:
            raise SettingError(
                f"{name} is in {counted(len(fitting), 'group')}, {' and '.join(fitting)}: give "
                "patterns that do not overlap"
            )
        chosen.append(fitting[0] if fitting else OTHERS)
    if unmatched := [group for group in patterns if group not in chosen]:
        raise SettingError(
            f"no parameter matches the patterns of {', '.join(unmatched)}: names are like "
            f"{names[0]} and {names[-1]}, and * stands for any part of one"
        )
    return chosen
