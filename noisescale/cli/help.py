"""How a command explains itself: help by subject, examples, and usage errors that name it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from noisescale.errors import SettingError

HELP_WIDTH = 120  # columns at most, of a help text: longer lines are hard to read


class Subject(NamedTuple):
    """A section of a help text.

    examples: the first whose options the command has stands in the heading. flags: the options, in
    whichever command they are, or "command --flag" where only that one's is meant.
    """

    title: str
    examples: tuple[str, ...]
    flags: str


SUBJECTS = (
    Subject(
        "What to do",
        ("--from-csv runs.csv", "--preset three-cases", "--minutes 10"),
        "--method --from-csv --from --preset --resume --minutes",
    ),
    Subject(
        "Model and data",
        (
            "--dataset digits --model cnn --width 16",
            "--problem my_file.py:make_problem --num-examples 5000",
            "--problem my_file.py:make_problem",
        ),
        "--problem --dataset --text --pixel-scale --num-train --label-noise --classes --imbalance "
        "--model --width --depth --heads --context --tied --norm --ghost-size "
        "--loss --split --num-examples --population --param --augmentations",
    ),
    Subject(
        "Batch size and learning rate",
        (
            "--bs 1 --bs 32 --lr-min 1e-3 --lr-max 1",
            "--bs 1 --bs 8 --bs 64 --bs 512 --lr-max 0.5",
            "--bs 32 --bs 1024 --lr 0.05",
            "--bs 32",
            "--lr 0.05",
        ),
        "--bs --lr --lr-min --lr-max --num-lr --bisect --folds --factor --precision --lr-bend",
    ),
    Subject(
        "Training",
        (
            "--epochs 5 --momentum 0.9",
            "--epochs 3 --seeds 5",
            "--lr-scaling noise --optimizer adam",
        ),
        "--epochs --max-steps --steps sweep-lr --examples --optimizer --momentum "
        "--nesterov --weight-decay --beta1 --beta2 --epsilon --warmup --lr-schedule --decay-share "
        "--sampling --sampling-floor --seed --seeds --max-seeds",
    ),
    Subject("Goals", ("--goal 0.5 --goal 0.2",), "--goal --goal-split"),
    Subject(
        "Branches from a checkpoint",
        ("--method branch --tolerance 0.02",),
        "critical-batch --lr critical-batch --examples --tolerance critical-batch --lr-scaling",
    ),
    Subject(
        "Adaptive batch size",
        ("--bs adaptive --lr-scaling noise --bs-max 1024",),
        "--exchange-rate --lr-scaling --bs-initial --bs-min --bs-max --hysteresis --noise-memory",
    ),
    Subject(
        "What to measure",
        (
            "--measure-noise-every log --noise-hessian",
            "--hessian --per-layer --per-class",
            "--top 3 --trace --batch-sharpness 32",
            "--noise-examples 8000",
            "--points 21 --to-alpha 1.2",
            "--no-predict",
        ),
        "--measure-noise-every --noise-examples --noise-hessian --noise-per-layer --noise-geometry "
        "--noise-sign --measure-sharpness-every --sharpness-examples --hessian --num-probes "
        "--hessian-examples --per-layer --per-class --anatomy --top --bottom --trace --density "
        "--phi --filter-normalised --points --from-alpha --to-alpha --buffers --phi-iterations "
        "--batch-sharpness --ggn --critical --sign --noise --predict measure-noise --bs "
        "--preconditioner",
    ),
    Subject(
        "How to compute",
        ("--processes 4", "--dtype float64 --seed 1", "--device cpu"),
        "--dry-run --engine measure-noise --seed sharpness --seed interpolate --seed "
        "sharpness --method --rtol --max-matvecs --dtype --amp --device --data-dir --executor "
        "--processes --scheduler",
    ),
    Subject(
        "What to leave",
        (
            "--out my_run --checkpoint-every 100",
            "--out folder --json",
            "--json --plot picture.png",
            "--out pictures --format pdf",
            "--out report.html",
        ),
        "--out --force --checkpoint-every --evaluate-every --log-dir --unit --json --csv --plot "
        "--schedule --multiple-of "
        "--format --debug --help",
    ),
)
# What other tools call an option of ours; the first of these that a command has is meant
OTHER_NAMES = {
    "--batch-size": ("--bs", "--batch-sharpness"),
    "--batchsize": ("--bs", "--batch-sharpness"),
    "--batch": ("--bs", "--batch-sharpness"),
    "--learning-rate": ("--lr", "--lr-max"),
    "--wd": ("--weight-decay",),
    "--num-epochs": ("--epochs",),
    "--iterations": ("--max-steps", "--steps"),
    "--iters": ("--max-steps", "--steps"),
    "--steps": ("--max-steps",),
    "--num-steps": ("--max-steps", "--steps"),
    "--num-seeds": ("--seeds",),
    "--goals": ("--goal",),
    "--target": ("--goal",),
    "--hidden": ("--width",),
    "--layers": ("--depth",),
    "--block-size": ("--context",),
    "--sequence-length": ("--context",),
    "--n-head": ("--heads",),
    "--num-heads": ("--heads",),
    "--num-samples": ("--num-examples", "--num-train"),
    "--subset": ("--num-examples", "--num-train"),
    "--noisy-labels": ("--label-noise",),
    "--num-classes": ("--classes",),
    "--factory": ("--problem",),
    "--data": ("--data-dir",),
    "--data-root": ("--data-dir",),
    "--gpu": ("--device",),
    "--cuda": ("--device",),
    "--workers": ("--processes",),
    "--jobs": ("--processes",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--out-dir": ("--out",),
    "--figure": ("--plot",),
    "--tensorboard": ("--log-dir",),
    "--overwrite": ("--force",),
    "--checkpoint": ("--from",),
    "--num-eigenvalues": ("--top",),
    "--eigenvalues": ("--top",),
    "--noise-every": ("--measure-noise-every",),
    "--sharpness-every": ("--measure-sharpness-every",),
}


class Command(click.Command):
    """A command whose help is by subject and whose usage errors name it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; an option that other tools have is told by its name here."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            ours = OTHER_NAMES.get(error.option_name.replace("_", "-"), ())
            known = {flag for param in self.params for flag in param.opts}
            meant = next((flag for flag in ours if flag in known), None)
            if meant is None:
                raise
            message = f"No such option {error.option_name!r}. Did you mean {meant}?"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; a setting out of its range knows that it is this command's."""
        try:
            return super().invoke(ctx)
        except SettingError as error:
            error.command = ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, a section for each subject."""
        for heading, records in self.sections(ctx):
            title, _, example = heading.partition(", ")
            has_room = len(heading) < formatter.width
            with formatter.section(heading if has_room else title):
                if not has_room:
                    formatter.write_text(example)
                formatter.write_dl(records)

    def sections(self, ctx: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """The heading of each subject that has options, and what to say of these."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        subjects = {
            option: subject_of(str(self.name), max(option.opts, key=len)) for option in options
        }
        for subject in (None, *SUBJECTS):
            members = [option for option in options if subjects[option] == subject]
            records = [record for option in members if (record := option.get_help_record(ctx))]
            if records:
                yield _heading(subject, options), records

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples, a remark below its command where both do not fit in a line."""
        if self.epilog:
            lines = self.epilog.replace("\b", "").strip("\n").splitlines()
            formatter.write_paragraph()
            formatter.write("\n".join(_folded(line, formatter.width) for line in lines) + "\n")


def subject_of(command: str, flag: str) -> Subject | None:
    """The section that an option of a command stands in; None for that of all others."""
    for wanted in (f"{command} {flag}", flag):
        for subject in SUBJECTS:
            if wanted in re.findall(r"(?:[a-z][\w-]* )?--[\w-]+", subject.flags):
                return subject
    return None


def _heading(subject: Subject | None, options: list[click.Option]) -> str:
    """The title of a section with an example of its options."""
    if subject is None:
        return "Options"
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    repeatable = {flag for option in options if option.multiple for flag in option.opts}
    for example in subject.examples:
        flags = re.findall(r"--[\w-]+", example)
        repeated = {flag for flag in flags if flags.count(flag) > 1}
        if set(flags) <= known and repeated <= repeatable:
            return f"{subject.title}, as in {example}"
    return subject.title


def _folded(line: str, width: int) -> str:
    """An example, its remark in a line below where it would stick out."""
    if len(line) <= width:
        return line
    command, gap, remark = line.rstrip().rpartition("   ")
    return f"{command.rstrip()}\n      {remark.strip()}" if gap and command.strip() else line
