"""What the noise-scale monitor adds to a training step with gradient accumulation.

    python -m experiments.benchmarks.monitor

The limit: two squared norms per update, each of which reads the gradient once. For the study's
network that is 7.5 MB each, 0.75 ms in all at 20 GB/s, against a step of K micro-batches of b
examples at 29 MFLOP and three passes each. The peer is what a loop without cumulative norms does:
the norm of every micro-batch's own gradient, which takes a copy of the running sum and a
difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import Tensor, nn

from experiments.resources import NEVER, Deadline, Part, Record, seconds
from noisescale import NoiseScaleMonitor, ProblemConfig, build_problem
from noisescale.problems.problem import Problem, as_examples

RESULTS = Path(__file__).parent / "results"
SIZES = (
    (8, 128),
    (2, 128),
    (4, 128),
    (16, 128),
    (8, 32),
    (8, 512),
    (2, 16),
)  # micro-batches and examples in each
TARGET = 0.03  # of a step, at the first of these


class Step:
    """One update of plain SGD from K micro-batches of b examples, and what looks at its gradient.

    look: is called after each micro-batch; finish: after the last, before the optimizer.
    """

    def __init__(
        self,
        problem: Problem,
        parts: list[Tensor],
        look: Callable[[int], Any] = lambda count: None,
        finish: Callable[[], Any] = lambda: None,
    ) -> None:
        self.problem, self.parts, self.look, self.finish = problem, parts, look, finish
        self.optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-6)
        self.looking = 0.0  # seconds spent in look and finish

    def __call__(self) -> None:
        problem, train = self.problem, as_examples(self.problem.train)
        for part in self.parts:
            outputs = problem.model(train.inputs[part])
            losses = problem.loss(outputs, train.targets[part])
            (losses.mean() / len(self.parts)).backward()
            self.looking += seconds(partial(self.look, len(part)))
        self.looking += seconds(self.finish)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Differences:
    """The peer: every micro-batch's norm, from the difference to a copy of the sum before it."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.before: list[Tensor] | None = None
        self.squares: list[Tensor] = []

    def look(self, count: int) -> None:
        sums = [param.grad for param in self.parameters if param.grad is not None]
        latest = sums if self.before is None else torch._foreach_sub(sums, self.before)
        self.squares.append(torch.stack(torch._foreach_norm(latest)).square().sum())
        self.before = [grad.clone() for grad in sums]

    def finish(self) -> None:
        self.before = None
        self.squares.clear()


def measure(
    problem: Problem,
    micro_batches: int,
    examples: int,
    *,
    rounds: int,
    num_examples: int = 60_000,
    deadline: Deadline = NEVER,
) -> dict[str, Any]:
    """Seconds per update: plain, with the monitor and with the peer, interleaved."""
    device = next(problem.model.parameters()).device
    parts = list(
        torch.randperm(num_examples)[: micro_batches * examples].to(device).split(examples)
    )
    monitor, peer = NoiseScaleMonitor(problem.model), Differences(problem.model)
    steps = {
        "plain": Step(problem, parts),
        "monitor": Step(problem, parts, monitor.micro_batch, monitor.update),
        "differences": Step(problem, parts, peer.look, peer.finish),
    }
    for step in steps.values():
        step()
        step.looking = 0.0
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in deadline.rounds(rounds, fewest=3):
        for name, step in steps.items():
            times[name].append(seconds(step))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "micro_batches": micro_batches,
        "examples": examples,
        "rounds": len(times["plain"]),
        "seconds": medians,
        "overhead": statistics.median(
            with_it / without - 1
            for with_it, without in zip(times["monitor"], times["plain"], strict=True)
        ),
        "looking": steps["monitor"].looking / sum(times["monitor"]),
        "looking_differences": steps["differences"].looking / sum(times["differences"]),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=61, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: results/monitor-DEVICE.json]",
)
def main(
    device: str, rounds: int, data_dir: Path | None, minutes: float | None, out: Path | None
) -> None:
    """Measure the share of a step that the monitor takes, and print and write it."""
    torch.manual_seed(0)
    record = Record(
        out or RESULTS / f"monitor-{device}.json", device, minutes=minutes, target=TARGET
    )
    problem = build_problem(ProblemConfig(dataset="mnist"), data_dir=data_dir, device=device)

    def of(micro_batches: int, examples: int) -> Part:
        return lambda deadline: measure(
            problem, micro_batches, examples, rounds=rounds, deadline=deadline
        )

    parts = {f"results/+{count} × {examples}": of(count, examples) for count, examples in SIZES}
    record.measure(parts, Console(stderr=True, highlight=False))
    for result in record.content.get("results", []):
        click.echo(
            f"{result['micro_batches']:3} × {result['examples']:4}: "
            f"step {1e3 * result['seconds']['plain']:7.1f} ms, "
            f"monitor {100 * result['looking']:5.2f} % of it "
            f"(whole step {100 * result['overhead']:+.1f} %), every "
            f"norm by differences {100 * result['looking_differences']:5.2f} %"
        )


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.monitor")
