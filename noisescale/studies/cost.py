"""What a measurement will take, told by its first chunk of examples before it is begun."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.measure.gradients.choice import EngineChoice
from noisescale.measure.gradients.moments import moments_on
from noisescale.measure.noise import noise_objective
from noisescale.measure.noise_parts.classes import classes_of
from noisescale.measure.noise_parts.components import component_noise, first_linear
from noisescale.measure.noise_parts.options import NoiseOptions, check_options, hessian_sample_size
from noisescale.measure.noise_parts.probes import (
    CROSSED,
    DEFLATED,
    DEFLATING,
    DEFLATING_ANEW,
    GRADIENTS,
    HESSIAN_GROUPS,
    PRODUCTS_PER_VECTOR,
)
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions
from noisescale.measure.sharpness.measurement import (
    BATCHED_EXAMPLES,
    DENSITY_MATVECS,
    ITERATION_MATVECS,
    phi_searches,
    sharpness_objective,
)
from noisescale.problems.problem import Params, Problem, held
from noisescale.statistics.display import Shown, Summary
from noisescale.statistics.sample import Sample
from noisescale.training.console import duration_text

Result = TypeVar("Result")
# Products that a search takes, about, of trained networks: for λ_max, for each further one, and for
# the smallest, which lies in a crowd
LARGEST_MATVECS, FURTHER_MATVECS, SMALLEST_MATVECS = 20, 10, 120
PASSES_OF_CRITICAL = 10  # forward passes, each a third of a gradient
BYTES_OF_NUMBER = 8  # float64


@dataclass(frozen=True, kw_only=True, repr=False)
class Cost(Shown):
    """What a measurement will take, about.

    By the first chunk of its examples: work on the others is taken for as long. Within a factor of
    two on a machine that does nothing else; a search for eigenvalues ends when it has converged,
    which is not known before.

    Attributes:
        parts: seconds of each part of the measurement.
        most_seconds: where searches for eigenvalues take all the products that they may.
        memory_bytes: most memory held, of the whole process on a CPU, of torch's tensors on a GPU.
        num_examples: that are measured.
        chunk_size: of these, that the estimate is made with.
    """

    parts: dict[str, float]
    most_seconds: float
    memory_bytes: int
    num_examples: int
    chunk_size: int

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())

    def times(self, number: int) -> Cost:
        """What as many measurements like this one take, one after the other.

        Args:
            number: of them.
        """
        parts = {name: number * seconds for name, seconds in self.parts.items()}
        return replace(self, parts=parts, most_seconds=number * self.most_seconds)

    def _summary(self) -> Summary:
        longest = _about(self.most_seconds)
        notes = [
            f"by {self.chunk_size:,} of {self.num_examples:,} examples, within a factor of two"
        ]
        if longest != _about(self.seconds):
            notes.append(f"{longest} where no search for eigenvalues converges before its limit")
        return Summary(
            title=f"About {_about(self.seconds)}, and {self.memory_bytes / 1e9:.2g} GB of memory",
            headings=("part", "seconds", "share"),
            rows=[
                (name, f"{seconds:,.1f}", f"{seconds / self.seconds:.0%}")
                for name, seconds in self.parts.items()
            ],
            notes=tuple(notes),
            numeric=True,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seconds": self.seconds,
            "most_seconds": self.most_seconds,
            "memory_bytes": self.memory_bytes,
            "num_examples": self.num_examples,
            "chunk_size": self.chunk_size,
            "parts": [{"part": name, "seconds": seconds} for name, seconds in self.parts.items()],
        }


def _about(seconds: float) -> str:
    return "a second" if seconds < 1.5 else duration_text(seconds)


def peak_memory(device: torch.device | str) -> int:
    """Most bytes held so far: of the whole process, or on a GPU of torch's tensors there.

    Args:
        device: a CPU or a GPU.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which Linux gives in KiB


def forget_peak(device: torch.device | str) -> None:
    """Begins the count of `peak_memory` anew, on a GPU alone.

    Args:
        device: a CPU or a GPU.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def noise_cost(
    problem: Problem,
    params: Params | None = None,
    options: NoiseOptions | None = None,
    *,
    geometries: int = 1,
    seed: int = 0,
) -> Cost:
    """What `measure_noise` will take.

    Args:
        problem: the model, its loss per example and its data.
        params: where to measure; None: the model's own parameters.
        options: of the measurement.
        geometries: in how many the Hessian's part is measured: two, under a preconditioner, unless
            the options say which.
        seed: of the subset.

    Returns:
        Its seconds by part, and its memory.

    Raises:
        SettingError: as `measure_noise`.
        MeasurementError: as `measure_noise`, of the first chunk.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, noise_cost
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> cost = noise_cost(problem)
        >>> cost.num_examples, list(cost.parts)
        (1297, ['gradients'])
    """
    options = options or NoiseOptions()
    check_options(problem, options, has_preconditioner=True)
    generator = torch.Generator().manual_seed(seed)
    selected, objective = noise_objective(problem, params, options, generator)
    once = objective.differentiated_once()
    first = once.part(once.examples.part(slice(max(once.chunk_size, 2))))  # a covariance takes two
    # checks, and what is set up, are in the first time alone
    begun, moments = _timed(
        lambda: moments_on(
            first,
            indices=torch.arange(first.num_examples),
            population_size=first.num_examples,
            engine=options.engine,
        ),
        first,
    )
    engine = EngineChoice(moments.engine, first).make(first)
    chunk = first.examples.part(slice(None))
    mean = {name: part.to(first.dtype) for name, part in moments.mean.items()}
    again, _ = _timed(lambda: (engine.statistics(chunk), engine.projections(chunk, [mean])), first)
    chunks = objective.num_examples / first.num_examples
    parts = {"gradients": begun + (chunks - 1) * again}
    memory = peak_memory(objective.device)
    # norms and projections, by parameter tensor, twice while they are put together
    rows = objective.num_examples - first.num_examples
    memory += 4 * BYTES_OF_NUMBER * rows * moments.squared_norms.shape[1]
    if options.hessian:
        wanted = options.hessian_examples or hessian_sample_size(selected.population_size)
        wanted = min(wanted, selected.population_size)
        products = _products_of_noise(objective, wanted, options)
        whole = products.seconds * geometries + GRADIENTS * parts["gradients"] * geometries
        parts["hessian"] = whole
        memory += products.memory_bytes
    if options.sign:
        of_sums = _seconds_again(lambda: engine.coordinate_sums(chunk), first)
        parts["sign"] = chunks * of_sums
    classes = classes_of(chunk) if options.per_class or options.anatomy else None
    if classes is not None:  # each with moments of its own, and what is in the first time alone
        parts["classes"] = chunks * again + len(classes.unique()) * max(begun - again, 0.0)
    layer = first_linear(objective) if options.anatomy else None
    if layer is not None:
        weight = moments.mean[f"{layer}.weight".lstrip(".")]
        of_some = Sample(
            num_examples=first.num_examples,
            population_size=2 * objective.num_examples,
            population="dataset",
        )
        parts["anatomy"] = _seconds_of_all(
            lambda some: component_noise(some, layer, weight, of_some), first, objective
        )
    seconds = sum(parts.values())
    return Cost(
        parts=parts,
        most_seconds=seconds,
        memory_bytes=memory,
        num_examples=objective.num_examples,
        chunk_size=first.num_examples,
    )


def sharpness_cost(
    problem: Problem,
    params: Params | None = None,
    options: SharpnessOptions | None = None,
    *,
    geometries: int = 1,
) -> Cost:
    """What `measure_sharpness` will take.

    Args:
        problem: the model, its loss and its examples.
        params: where to measure; None: the model's own parameters.
        options: of the measurement.
        geometries: two where λ_max(P^½HP^½) is measured beside λ_max(H).

    Returns:
        Its seconds by part, and its memory.

    Raises:
        SettingError: as `measure_sharpness`.
        MeasurementError: as `measure_sharpness`, of the first chunk.

    Examples:
        >>> from noisescale import ProblemConfig, SharpnessOptions, build_problem, sharpness_cost
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> list(sharpness_cost(problem, options=SharpnessOptions(trace=True)).parts)
        ['gradient', 'eigenvalues', 'trace']
    """
    options = options or SharpnessOptions()
    selected, objective = sharpness_objective(problem, params, options)
    first = objective.part(objective.examples.part(slice(objective.chunk_size)))
    gradient = _seconds_again(first.value_and_gradient, first)
    chunks = objective.num_examples / first.num_examples
    one = _Products.of(first, objective, record_ggn if options.ggn else record_hessian)
    searches = [options.top and LARGEST_MATVECS + FURTHER_MATVECS * (options.top - 1)]
    searches.append(options.bottom and SMALLEST_MATVECS + FURTHER_MATVECS * (options.bottom - 1))
    searches.append((geometries - 1) * LARGEST_MATVECS)
    # of a subset the eigenvectors of either half are sought as well, together on as many examples
    halves = 1 if objective.num_examples == selected.population_size else 2
    matvecs = halves * sum(min(number, options.max_matvecs) for number in searches)
    most = halves * options.max_matvecs * sum(1 for number in searches if number)
    batches = options.batch_size is not None
    parts = {
        "gradient": chunks * gradient + one.recording,
        "eigenvalues": one.times(matvecs),
        "critical": options.critical * PASSES_OF_CRITICAL / 3 * chunks * gradient,
        "batch sharpness": batches * one.times(options.interaction_batches)
        + batches * (gradient + one.anew) * _examples_of_batches(options) / first.num_examples,
        "trace": one.times(options.trace * options.trace_matvecs),
        "density": one.times(options.density * DENSITY_MATVECS),
        "phi": one.times(phi_searches(options) * options.phi_iterations * ITERATION_MATVECS),
    }
    parts = {name: seconds for name, seconds in parts.items() if seconds}
    return Cost(
        parts=parts,
        most_seconds=sum(parts.values()) + one.times(most) - one.times(matvecs),
        memory_bytes=peak_memory(objective.device) + one.memory_bytes,
        num_examples=objective.num_examples,
        chunk_size=first.num_examples,
    )


def _examples_of_batches(options: SharpnessOptions) -> int:
    """How many examples all batches of batch sharpness have together."""
    if options.num_batches is None or options.batch_size is None:
        return BATCHED_EXAMPLES
    return options.num_batches * options.batch_size


@dataclass(frozen=True)
class _Products:
    """What products of a matrix take, by those of its first chunk.

    anew: seconds of a chunk's product, its graph recorded for it. kept: where that lies there.
    chunks: of the examples. kept_chunks: whose graphs lie there. memory_bytes: of all these graphs
    but the first.
    """

    anew: float
    kept: float
    chunks: float
    kept_chunks: float
    memory_bytes: int

    @classmethod
    def of(cls, first: Objective, whole: Objective, record: Any) -> _Products:
        product = CurvatureProduct(first, record)
        kept_chunks = CurvatureProduct(whole, record).num_kept / first.num_examples
        vector = torch.ones_like(first.point)
        afresh = CurvatureProduct(first, record, kept_bytes=0)
        anew = _seconds_again(lambda: afresh(vector), first)
        kept = _seconds_again(lambda: product(vector), first)
        held_bytes = first.num_examples * first.bytes_per_example + first.point.nbytes
        return cls(
            anew=anew,
            kept=kept,
            chunks=whole.num_examples / first.num_examples,
            kept_chunks=kept_chunks,
            memory_bytes=round(max(kept_chunks - 1, 0) * held_bytes),
        )

    @property
    def recording(self) -> float:
        """Seconds of the graphs that are kept, once for all products."""
        return self.kept_chunks * max(self.anew - self.kept, 0.0)

    def times(self, number: float) -> float:
        """Seconds of so many products, the recording of graphs that are kept not among them."""
        rest = self.chunks - self.kept_chunks
        return number * (self.kept_chunks * self.kept + rest * self.anew)


@dataclass(frozen=True)
class _Hessian:
    """Seconds and bytes of the products behind B_noise."""

    seconds: float
    memory_bytes: int


def _products_of_noise(objective: Objective, wanted: int, options: NoiseOptions) -> _Hessian:
    """Those with the mean gradient, for the eigenvectors, and with each probe."""
    hessian = objective.on(held(objective.examples.part(slice(wanted))))
    hessian.cap_chunk_size(-(-wanted // HESSIAN_GROUPS))
    first = hessian.part(hessian.examples.part(slice(hessian.chunk_size)))
    one = _Products.of(first, hessian, record_hessian)
    share = wanted / hessian.num_examples  # more than were measured the gradients of
    vectors = DEFLATED * PRODUCTS_PER_VECTOR
    if one.kept_chunks >= one.chunks:
        part = 1 / DEFLATING  # whose graphs are kept beside
        seconds = (1 + part) * one.recording
        seconds += one.times(1 + vectors * part + options.num_probes)
        memory_bytes = (1 + part) * one.memory_bytes
    else:
        seconds = one.times(1 + vectors / DEFLATING_ANEW + options.num_probes / CROSSED)
        memory_bytes = one.memory_bytes
    return _Hessian(share * seconds, round(share * memory_bytes))


def _seconds_of_all(work: Callable[[Objective], Any], first: Objective, whole: Objective) -> float:
    """What work takes a part of which is the same however many examples, by two numbers of them."""
    half = first.part(first.examples.part(slice(max(first.num_examples // 2, 2))))
    less, more = (_seconds_again(partial(work, part), part) for part in (half, first))
    of_each = max(more - less, 0.0) / max(first.num_examples - half.num_examples, 1)
    return more + (whole.num_examples - first.num_examples) * of_each


def _seconds_again(work: Callable[[], Any], objective: Objective) -> float:
    """What a piece of work takes the second time, when all that is done once is done."""
    work()
    return _timed(work, objective)[0]


def _timed(work: Callable[[], Result], objective: Objective) -> tuple[float, Result]:
    """What a piece of work takes by the clock, a GPU's part included, and what it gives."""
    started = time.perf_counter()
    result = work()
    if objective.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result
