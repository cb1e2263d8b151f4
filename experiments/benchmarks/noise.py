"""Statistics of per-example gradients against a plain gradient, BackPACK, Opacus and eager vmap.

    python -m experiments.benchmarks.noise

The limit, counting matrix products of the study's network (1.86 M weights, .80 M of them in the
first layer): a forward and backward pass takes 4.78 M multiplications per example. Norms from layer
inputs and output gradients add 1e4, so moments without errors are bounded by 1.0. Errors take a
second pass of 4.78 M, forward, back to the layers' outputs, and one product with the mean gradient
each: bounded by 2.0. Where a layer is used at several places, as in a convolution or a transformer,
the products are those of a plain pass as well, but each example's gradient is written, squared and
added to the sum: three times 4 bytes a weight and example, a quarter of a weight gradient's product
at 64 places and a tenth at 256. A convolution has its patches copied out besides. The compiled
program adds a multiplication, a square and a sum for each of 1.86 M entries of the outer products,
which no matrix unit does: about 2.5 at the machine's ratio of vector to matrix arithmetic. Eager
vmap writes and reads 7.5 MB per example.

Peers in their best mode: BackPACK's BatchL2Grad; Opacus' GradSampleModuleFastGradientClipping,
whose ghost norms write no gradient out, beside its GradSampleModule, which does.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from experiments.resources import (
    NEVER,
    Deadline,
    Part,
    PeerMissing,
    Record,
    cpu_seconds,
    peak_bytes,
    peer,
    seconds,
    where_and_when,
)
from noisescale import Problem, ProblemConfig, build_problem, gradient_moments, measure_noise
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import select
from noisescale.training.records.folder import write_json

RESULTS = Path(__file__).parent / "results"
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 256, 64, 128, 4, 2
MODELS = ("mlp", "cnn", "transformer", "gpt2 small")
GEOMETRY_CHUNK = 64  # sequences: a quarter of those measured on, so that memory may be flat
# glibc keeps freed blocks otherwise, in pieces that later ones do not fit into, so that a process's
# peak grows with how often its work is repeated
RETURNING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
    "MALLOC_TRIM_THRESHOLD_": str(2**18),
}
# In plain passes: without errors, with them, and the peak of memory
TARGETS: dict[str, Any] = {
    "mlp": {"hooks": 1.1, "hooks, with errors": 2.2},
    "cnn": {"hooks": 1.4, "hooks, with errors": 2.6},
    "transformer": {"hooks": 1.5, "hooks, with errors": 2.7, "memory": 1.4},
    "gpt2 small": {"hooks": 1.5},
    "gpt2": {"hooks": 1.5, "memory": 1.4},
    "geometry": 1.15,
    "compiled": 4.0,
    "compiled against eager vmap": 12.0,
    "peak bytes": 2**30,
    "seconds for 60,000 on a GPU": 1.0,
}


class Case(NamedTuple):
    """A problem, how many examples fast and slow competitors get, and chunk sizes to try.

    few: 0 leaves all but a plain pass and hooks out.
    """

    problem: Problem
    many: int
    few: int
    large: tuple[int, ...]
    small: tuple[int, ...]


class Transformer(nn.Module):
    """A small causal language model: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(torch.arange(LENGTH, device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=tokens.device)
        outputs: Tensor = self.head(self.layers(hidden, mask=mask))
        return outputs


def sequence_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence: (B, T, V), (B, T) -> (B,)."""
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets).mean(1)


def gpt2(
    device: str, *, layers: int, width: int, heads: int, context: int, vocabulary: int, number: int
) -> Problem:
    """A GPT-2, its output layer tied to its embedding, on random tokens."""
    transformers = peer("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = transformers.GPT2LMHeadModel(config)
        model.to(device).eval()
        tokens = torch.randint(0, vocabulary, (number, context + 1), device=device)
    return Problem(
        model=model,
        loss=lambda outputs, targets: sequence_loss(outputs.logits, targets),
        train=Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()),
    )


def cases(device: str, *, scale: float = 1.0, large: bool = False) -> dict[str, Case]:
    """An MLP and a CNN on MNIST, language models on random tokens, GPT-2 where it is installed.

    scale: share of the examples. large: with a GPT-2 of 124 M parameters.
    """

    def count(number: int) -> int:
        return max(round(scale * number), 16)

    mlp = build_problem(ProblemConfig(), device=device)
    cnn = build_problem(ProblemConfig(model="cnn"), device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.randint(0, VOCABULARY, (count(512), LENGTH + 1), device=device)
        model = Transformer().to(device)
    examples = Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    transformer = Problem(model=model, loss=sequence_loss, train=examples)
    of_all = {
        "mlp": Case(mlp, count(60_000), count(512), (512, 1024, 2048), (2, 4, 8, 16)),
        "cnn": Case(cnn, count(4096), count(512), (64, 128, 256, 512), (16, 64, 256)),
        "transformer": Case(transformer, count(512), count(128), (16, 32, 64, 128), (4, 8, 16)),
    }
    try:
        small = gpt2(
            device, layers=6, width=192, heads=6, context=128, vocabulary=4096, number=count(256)
        )
    except PeerMissing:
        return of_all
    of_all["gpt2 small"] = Case(small, count(256), count(32), (4, 8, 16, 32), (2, 4, 8))
    if large:
        context, number = (1024, 64) if device == "cuda" else (256, 32)
        whole = gpt2(
            device,
            layers=12,
            width=768,
            heads=12,
            context=context,
            vocabulary=50_257,
            number=count(number),
        )
        of_all["gpt2"] = Case(whole, count(number), 0, (2, 4), ())
    return of_all


def plain(problem: Problem, examples: Examples, chunk_size: int) -> None:
    """One forward and backward pass of the summed loss."""
    params = list(problem.model.parameters())
    for start in range(0, examples.num_examples, chunk_size):
        chunk = examples.part(slice(start, start + chunk_size))
        torch.autograd.grad(problem.loss(problem.model(chunk.inputs), chunk.targets).sum(), params)


def ours(problem: Problem, examples: Examples, chunk_size: int | None, **options: Any) -> None:
    """`gradient_moments` by one engine, chunk size chosen by itself for None.

    RuntimeError where another one had to take over.
    """
    moments = gradient_moments(
        Problem(model=problem.model, loss=problem.loss, train=examples),
        chunk_size=chunk_size,
        **options,
    )
    if moments.engine != options.get("engine", moments.engine):
        raise RuntimeError(moments.notes[0])


def by_backpack(problem: Problem, examples: Examples, chunk_size: int) -> None:
    """Squared norms by BackPACK's BatchL2Grad."""
    backpack, extensions = peer("backpack"), peer("backpack.extensions")
    model = backpack.extend(copy.deepcopy(problem.model))
    for start in range(0, examples.num_examples, chunk_size):
        chunk = examples.part(slice(start, start + chunk_size))
        model.zero_grad()
        with backpack.backpack(extensions.BatchL2Grad()):
            problem.loss(model(chunk.inputs), chunk.targets).sum().backward()
        torch.stack([param.batch_l2 for param in model.parameters()], 1)


def by_opacus(problem: Problem, examples: Examples, chunk_size: int) -> None:
    """Squared norms of Opacus' written-out gradients."""
    model = peer("opacus").GradSampleModule(
        copy.deepcopy(problem.model).train(), loss_reduction="sum"
    )  # it asks for that
    for start in range(0, examples.num_examples, chunk_size):
        chunk = examples.part(slice(start, start + chunk_size))
        model.zero_grad()
        problem.loss(model(chunk.inputs), chunk.targets).sum().backward()
        norms = [param.grad_sample.flatten(1).square().sum(1) for param in model.parameters()]
        torch.stack(norms, 1)


def by_ghost_norms(problem: Problem, examples: Examples, chunk_size: int) -> None:
    """Norms by Opacus without gradients written out, and the summed gradient."""
    model = peer("opacus.grad_sample").GradSampleModuleFastGradientClipping(
        copy.deepcopy(problem.model).train(), loss_reduction="sum"
    )
    for start in range(0, examples.num_examples, chunk_size):
        chunk = examples.part(slice(start, start + chunk_size))
        model.zero_grad()
        problem.loss(model(chunk.inputs), chunk.targets).sum().backward()
        model.get_norm_sample()


Competitor = Callable[[Problem, Examples, Any], None]


def compare(
    case: Case, *, rounds: int, console: Console, deadline: Deadline = NEVER
) -> dict[str, Any]:
    """Examples per second of each competitor at its best chunk size, medians over rounds."""
    many = select(case.problem, num_examples=case.many).examples.part(slice(None))
    few = many.part(slice(case.few))
    competitors: dict[str, tuple[Competitor, Examples, tuple[int | None, ...]]] = {
        "forward and backward": (plain, many, case.large),
        "hooks": (partial(ours, engine="hooks", standard_errors=False), many, (None,)),
        "hooks, with errors": (partial(ours, engine="hooks"), many, (None,)),
        "compiled": (partial(ours, engine="compiled", standard_errors=False), many, (None,)),
        "BackPACK BatchL2Grad": (by_backpack, many, case.large),
        "Opacus ghost norms": (by_ghost_norms, many, case.large),
        "Opacus GradSampleModule": (by_opacus, few, case.small),
        "eager vmap": (
            partial(ours, engine="vmap", standard_errors=False),
            few,
            (None, *case.small),
        ),
    }
    if not case.few:
        competitors = dict(list(competitors.items())[:3])
    best: dict[str, tuple[Competitor, Examples, int | None]] = {}
    missing: dict[str, str] = {}
    for name, (work, examples, sizes) in competitors.items():
        try:
            work(
                case.problem, examples.part(slice(2 * max(case.few, 4))), sizes[0]
            )  # caches, what is not covered
            taken = {size: seconds(partial(work, case.problem, examples, size)) for size in sizes}
        except PeerMissing as error:
            missing[name] = str(error)
            continue
        except Exception as error:  # a peer that does not cover the model
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            continue
        best[name] = work, examples, min(taken, key=lambda size: taken[size])
    rates: dict[str, list[float]] = {name: [] for name in best}
    for number in deadline.rounds(rounds):
        console.print(f"round {number + 1} of {rounds}")
        for name, (work, examples, size) in best.items():
            taken_now = seconds(partial(work, case.problem, examples, size))
            rates[name].append(examples.num_examples / taken_now)
    baseline = rates["forward and backward"]
    rows = {
        name: {
            "examples_per_second": statistics.median(speeds),
            "in_gradients": statistics.median(
                [plain_rate / rate for plain_rate, rate in zip(baseline, speeds, strict=True)]
            ),
            "chunk_size": best[name][2],
        }
        for name, speeds in rates.items()
    }
    return {
        "num_parameters": _size(case.problem.model),
        "rates": rows,
        "not_covered": missing,
        "memory": _memory(case, many),
    }


def some_preconditioner(problem: Problem) -> dict[str, Tensor]:
    """A diagonal P, at random from .1 to 1.1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.1 + torch.rand(param.shape, generator=generator)).to(param.device)
        for name, param in problem.model.named_parameters()
    }


def character_gpt(device: str) -> Problem:
    """The character GPT on tiny Shakespeare, as `noisescale train` makes it."""
    return build_problem(ProblemConfig(dataset="shakespeare", model="gpt"), device=device)


def peaks(device: str) -> dict[str, int]:
    """Peak memory of both geometries by number of sequences, of the character GPT."""
    problem = character_gpt(device)
    both = partial(
        measure_noise,
        problem,
        preconditioner=some_preconditioner(problem),
        chunk_size=GEOMETRY_CHUNK,
    )
    sizes = (4 * GEOMETRY_CHUNK, 16 * GEOMETRY_CHUNK)
    return {
        str(size): peak_bytes(partial(both, num_examples=size), device=device) for size in sizes
    }


def compare_geometries(
    problem: Problem, *, num_examples: int, rounds: int, device: str
) -> dict[str, Any]:
    """What statistics under a preconditioner cost beside plain ones alone, with errors.

    Medians over interleaved rounds, on a CPU of the process's own time, which others on the machine
    lengthen less.

    Args:
        problem: a model with its training set.
        num_examples: measured on.
        rounds: of time.
        device: that it lies on.
    """
    plain = partial(measure_noise, problem)
    both = partial(measure_noise, problem, preconditioner=some_preconditioner(problem))
    ways: dict[str, Callable[..., Any]] = {"plain": plain, "both": both}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    cost = seconds if device == "cuda" else cpu_seconds
    for counted in [False, *[True] * rounds]:  # the first, for what is done once
        for name, way in ways.items():
            now = cost(partial(way, num_examples=num_examples))
            if counted:
                taken[name].append(now)
    ratios = [two / one for one, two in zip(taken["plain"], taken["both"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "num_parameters": _size(problem.model),
        "num_examples": num_examples,
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in taken.items()},
        "ratio": {"median": median, "low": low, "high": high},
        "target": TARGETS["geometry"],
    }


def geometries(device: str, *, rounds: int, console: Console) -> dict[str, Any]:
    """The costs of `compare_geometries` on the character GPT, with where and when."""
    console.print("statistics under a preconditioner, of the character GPT")
    compared = compare_geometries(
        character_gpt(device), num_examples=256, rounds=2 * rounds + 1, device=device
    )
    code = f"from experiments.benchmarks.noise import *; print(json.dumps(peaks({device!r})))"
    of_child = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | RETURNING,
        check=True,
        capture_output=True,
        text=True,
    )
    memory = {"chunk_size": GEOMETRY_CHUNK, "peak_bytes": json.loads(of_child.stdout)}
    return {**where_and_when(device), **compared, **memory}


def _memory(case: Case, examples: Examples) -> dict[str, Any]:
    """Peak memory above the model and the examples, of ours and of a plain pass of its chunk."""
    device = next(case.problem.model.parameters()).device.type
    chunk_size = case.large[0]
    few = examples.part(slice(2 * chunk_size))
    peaks = {
        "plain": peak_bytes(partial(plain, case.problem, few, chunk_size), device=device),
        "hooks": peak_bytes(
            partial(ours, case.problem, few, chunk_size, engine="hooks"), device=device
        ),
    }
    # A small pass may fit in what the process holds already: no peak, and no ratio to it
    ratio = peaks["hooks"] / peaks["plain"] if peaks["plain"] > 0 else None
    return {"chunk_size": chunk_size, **peaks, "ratio": ratio}


def _size(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def parts_of(
    device: str,
    *,
    scale: float,
    large: bool,
    only: tuple[str, ...],
    rounds: int,
    console: Console,
) -> dict[str, Part]:
    """What is measured: MNIST as a whole, each model, and the two geometries."""

    @cache
    def of_all() -> dict[str, Case]:
        return cases(device, scale=scale, large=large)

    def whole() -> Problem:
        return of_all()["mlp"].problem

    def of_model(name: str) -> Part:
        def part(deadline: Deadline) -> dict[str, Any]:
            if name not in of_all():
                peer("transformers")
            return compare(of_all()[name], rounds=rounds, console=console, deadline=deadline)

        return part

    parts: dict[str, Part] = {
        "peak_bytes": lambda deadline: peak_bytes(
            partial(gradient_moments, whole()), device=device
        ),
        "seconds_with_errors": lambda deadline: seconds(partial(gradient_moments, whole())),
    }
    names = MODELS + (("gpt2",) if large else ())
    parts |= {f"models/{name}": of_model(name) for name in names if not only or name in only}
    parts["geometry"] = lambda deadline: geometries(device, rounds=rounds, console=console)
    return parts


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Share of the examples.")
@click.option("--large", is_flag=True, help="With a GPT-2 of 124 M parameters.")
@click.option("--only", multiple=True, help="These models alone, e.g. --only mlp.")
@click.option("--geometry", is_flag=True, help="The character GPT alone, into the present file.")
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(
    rounds: int,
    device: str,
    scale: float,
    large: bool,
    only: tuple[str, ...],
    geometry: bool,
    minutes: float | None,
    out: Path | None,
) -> None:
    """Compare ways of measuring per-example gradients on models of four kinds, and geometries."""
    warnings.simplefilter("ignore")  # the peers' own
    console = Console(stderr=True, highlight=False)
    path = out or RESULTS / f"noise-{device}.json"
    if geometry:
        of_geometry = geometries(device, rounds=rounds, console=console)
        write_json(path, {**json.loads(path.read_text()), "geometry": of_geometry})
        return
    record = Record(path, device, minutes=minutes, targets=TARGETS)
    parts = parts_of(device, scale=scale, large=large, only=only, rounds=rounds, console=console)
    record.measure(parts, console)
    result = record.content
    rates = result.get("models", {}).get("mlp", {}).get("rates", {})
    if {"compiled", "eager vmap"} <= rates.keys():
        fast, slow = (rates[way]["examples_per_second"] for way in ("compiled", "eager vmap"))
        result["compiled_against_eager_vmap"] = fast / slow
        write_json(path, result)
    show(result)


def show(result: dict[str, Any]) -> None:
    """Prints what was measured."""
    for name, row in result.get("models", {}).items():
        click.echo(f"\n{name}, {row['num_parameters']:,} parameters\n")
        click.echo("| | examples/s | in gradients |\n|---|---|---|")
        for way, numbers in row["rates"].items():
            rate = f"{numbers['examples_per_second']:,.0f}"
            click.echo(f"| {way} | {rate} | {numbers['in_gradients']:.2f} |")
        for way, reason in row["not_covered"].items():
            click.echo(f"| {way} | not covered: {reason} | |")
        ratio, chunk_size = row["memory"]["ratio"], row["memory"]["chunk_size"]
        resolved = "not resolved" if ratio is None else f"{ratio:.2f}"
        click.echo(f"\nmemory in plain passes of {chunk_size}: {resolved}")
    if ratio := result.get("compiled_against_eager_vmap"):
        click.echo(f"\ncompiled against eager vmap: {ratio:.1f}")
    if "seconds_with_errors" in result:
        click.echo(f"all of MNIST with errors: {result['seconds_with_errors']:.1f} s")
    if "peak_bytes" in result:
        click.echo(f"peak memory above the model: {result['peak_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.noise")
