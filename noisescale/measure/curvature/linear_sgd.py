"""SGD linearised at a minimum, and the learning rate beyond which it grows.

The steps are x ← x − (η/B) Σ_{i in batch} H_i x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.utils._pytree import tree_map

from noisescale.errors import SettingError
from noisescale.measure.curvature.example_curvature import OutputJacobian
from noisescale.measure.objective import Objective, flatten, is_out_of_memory
from noisescale.problems.problem import Params, Tree
from noisescale.problems.sampling import Batches
from noisescale.statistics.estimate import Estimate, from_samples, undefined

COMPARED = 4  # examples on which the replicas together are compared with each alone
DECIDED = 25.0  # log of a growth or decay of x, 10^11, that no later step is expected to undo
BISECTIONS = 7  # of log η: 1/128 of the range, below the spread of the replicas' thresholds
NORMALISED = 5  # steps between two normalisations of x, few enough for x to stay within float32
MEASURED = (
    512  # examples whose quadratic loss tells growth from decay; its precise size is no matter
)


class LinearisedSGD:
    """The steps of SGD on the quadratic model of an objective's loss at its point.

    H_i = J_iᵀ A_i J_i: the Gauss–Newton matrix of an example, so that the model is exact, about its
    minimum, for a network linear in its parameters.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._jacobian = OutputJacobian(objective)
        self._output_curvature = self._jacobian.output_curvature()  # (N, C, C)
        self._together: _ReplicasTogether | None = _ReplicasTogether(self._jacobian)
        if not self._agree():
            self._together = None

    def step(self, points: Params, batches: Tensor, rates: Tensor) -> Params:
        """One update of R replicas.

        Args:
            points: x of each (R, *shape), by parameter.
            batches: the indices of each one's batch (R, B).
            rates: η of each (R,).
        """
        products = self._products(points, batches)
        factor = rates / batches.shape[1]
        return {
            name: point - factor.reshape(-1, *[1] * (point.dim() - 1)) * products[name]
            for name, point in points.items()
        }

    def quadratic_loss(self, points: Params, rows: Tensor) -> Tensor:
        """½ mean xᵀH_i x of each replica over the examples at `rows` (n,): (R,) in float64."""
        inputs = self.objective.examples.part(rows).inputs
        middle = self._output_curvature[rows]
        means = [self._jacobian.forms(inputs, middle, point).mean() for point in _replicas(points)]
        return 0.5 * torch.stack(means)

    def _products(self, points: Params, batches: Tensor) -> Params:
        """Σ_i H_i x over each replica's batch (R, *shape), by parameter."""
        chosen = self.objective.examples.part(batches.flatten()).inputs
        inputs = tree_map(lambda leaf: leaf.unflatten(0, batches.shape), chosen)  # (R, B, *F)
        middle = self._output_curvature[batches]  # (R, B, C, C)
        if self._together is not None:
            return self._together.products(inputs, middle, points)
        each = [
            self._jacobian.product(
                tree_map(lambda leaf, replica=replica: leaf[replica], inputs),
                middle[replica],
                point,
            )
            for replica, point in enumerate(_replicas(points))
        ]
        return {name: torch.stack([product[name] for product in each]) for name in points}

    def _agree(self) -> bool:
        """Whether all replicas can be moved together, by a comparison on a few examples."""
        rows = torch.arange(2 * min(COMPARED, self.objective.num_examples // 2)).unflatten(
            0, (2, -1)
        )
        if not rows.numel():
            return False
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(2, self.objective.dim, generator=generator, dtype=torch.float64)
        named = [self.objective.unflatten(vector.to(self.objective.point)) for vector in vectors]
        points = {name: torch.stack([one[name] for one in named]) for name in named[0]}
        try:
            together = self._products(points, rows)
        # whatever torch raises in forward mode or under vmap, as for an operation without a rule
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return False
        mapped, self._together = self._together, None
        alone = self._products(points, rows)
        self._together = mapped
        found, expected = flatten(list(together.values())), flatten(list(alone.values()))
        precision = torch.finfo(self.objective.coarsest_dtype).eps ** 0.5
        return bool((found - expected).norm() <= precision * expected.norm())


class _ReplicasTogether:
    """Products of all replicas in one pass, by forward mode and vmap, where these work.

    Forward mode knows nothing of what a model detaches under no_grad, or of padding rows.
    """

    def __init__(self, jacobian: OutputJacobian) -> None:
        self._jacobian = jacobian
        self._params = {name: leaf.detach() for name, leaf in jacobian.params.items()}

    def products(self, inputs: Tree, middle: Tensor, points: Params) -> Params:
        """Σ_i H_i x of each replica.

        Args:
            inputs: of each one's batch (R, B, *F).
            middle: A_i (R, B, C, C).
            points: x (R, *shape), by parameter.
        """
        cast = self._jacobian.objective.cast(inputs)
        products: Params = vmap(self._product)(cast, middle, points)
        return products

    def _product(self, inputs: Tree, middle: Tensor, direction: Params) -> Params:
        def outputs(params: Params) -> Tensor:
            return self._jacobian.outputs(params, inputs)

        pushed = jvp(outputs, (self._params,), (direction,))[1]
        pull = vjp(outputs, self._params)[1]
        pulled: Params = pull(torch.einsum("bcd,bd->bc", middle, pushed))[0]
        return pulled


def _replicas(points: Params) -> list[Params]:
    """Each replica's x, of all of them (R, *shape)."""
    num_replicas = len(next(iter(points.values())))
    return [
        {name: part[replica] for name, part in points.items()} for replica in range(num_replicas)
    ]


def lyapunov_rate(
    sgd: LinearisedSGD,
    start: Tensor,
    *,
    batch_size: int,
    low: float,
    high: float,
    num_replicas: int,
    num_steps: int,
    generator: torch.Generator,
) -> Estimate:
    """The learning rate above which linearised SGD almost surely grows.

    There its Lyapunov exponent is 0. The mean-square thresholds are smaller: there it is a few rare
    runs that grow, here the typical one (Furstenberg & Kesten 1960 for the exponent; no formula is
    known for it beyond one dimension).

    Each replica bisects its own log η, by whether its quadratic loss has grown after `num_steps`
    steps along one and the same sequence of batches, drawn without replacement as in training. The
    estimate is the mean of log η over replicas, its interval Student's: it covers the chance of the
    batches, not the bias of a finite number of steps, which is of the order 1/num_steps.

    Args:
        sgd: the linearised steps.
        start: x (P,) before the first step, best the top eigenvector of H: directions that no
            example sees stay as they are for ever, and a random start has little else.
        batch_size: B.
        low: the least rate that is tried.
        high: the largest rate that is tried.
        num_replicas: how many sequences of batches.
        num_steps: the steps along each.
        generator: of the batches, on the CPU.

    Returns:
        The threshold; nan with bounds where a replica's is beyond `low` or `high`.

    Raises:
        SettingError: a range that is not 0 < low < high.
    """
    if not 0 < low < high < math.inf:
        raise SettingError(f"learning rates from {low:g} to {high:g}: give 0 < low < high")
    population_size = sgd.objective.num_examples
    seeds = torch.randint(0, 2**62, (num_replicas,), generator=generator).tolist()
    rows = torch.randperm(population_size, generator=generator)[:MEASURED].to(sgd.objective.device)
    bottom = torch.full((num_replicas,), math.log(low), dtype=torch.float64)
    top = torch.full((num_replicas,), math.log(high), dtype=torch.float64)
    for _ in range(BISECTIONS):
        middle = (bottom + top) / 2
        orders = [
            Batches(population_size, seed=seed, device=sgd.objective.device) for seed in seeds
        ]
        growth = log_growth(
            sgd, start, orders, middle.exp(), rows, batch_size=batch_size, num_steps=num_steps
        )
        shrank = growth <= 0
        bottom, top = torch.where(shrank, middle, bottom), torch.where(shrank, top, middle)
    half = (math.log(high) - math.log(low)) / 2**BISECTIONS
    if (bottom == math.log(low)).any():
        return Estimate(
            value=math.nan, stderr=math.nan, low=math.nan, high=low, num_samples=num_replicas
        )
    if (top == math.log(high)).any():
        return undefined(num_samples=num_replicas, low=high)
    logs = from_samples(((bottom + top) / 2).numpy())
    value = math.exp(logs.value)
    return Estimate(
        value=value,
        stderr=value * math.hypot(logs.stderr, half / math.sqrt(3)),
        low=math.exp(logs.low - half),
        high=math.exp(logs.high + half),
        num_samples=num_replicas,
    )


def log_growth(
    sgd: LinearisedSGD,
    start: Tensor,
    orders: list[Batches],
    rates: Tensor,
    rows: Tensor,
    *,
    batch_size: int,
    num_steps: int,
) -> Tensor:
    """½ log of the growth of each replica's quadratic loss: (R,), float64 on the CPU.

    Ends early once all of them have grown or shrunk beyond return; nan where one has outgrown the
    numbers.

    Args:
        sgd: the linearised steps.
        start: x (P,) before the first step.
        orders: each replica's order of examples, which is used up on the way.
        rates: η of each replica (R,).
        rows: the examples (n,) whose quadratic loss is compared.
        batch_size: B.
        num_steps: the steps at most.
    """
    objective = sgd.objective
    points = {
        name: part.expand(len(rates), *part.shape).clone()
        for name, part in objective.unflatten(start.to(objective.point) / start.norm()).items()
    }
    before = sgd.quadratic_loss(points, rows)
    logs = torch.zeros(len(rates), dtype=torch.float64, device=objective.device)
    rates = rates.to(objective.point)
    for step in range(1, num_steps + 1):
        points = sgd.step(points, _next_batches(orders, batch_size), rates)
        if step % NORMALISED and step < num_steps:
            continue
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in points.values()]).norm(dim=0)
        for part in points.values():
            part /= norms.reshape(-1, *[1] * (part.dim() - 1))
        logs += norms.double().log()
        if (logs.abs() > DECIDED).all():
            break
    # what is left in directions that no example sees has no loss, but for rounding of either sign
    after = sgd.quadratic_loss(points, rows).clamp_min(0.0)
    return (logs + 0.5 * (after / before).log()).cpu()


def _next_batches(orders: list[Batches], batch_size: int) -> Tensor:
    """The next batch of each replica (R, B); the short rest of an epoch is left out."""
    batches = [order.take(batch_size) for order in orders]
    if len(batches[0]) < batch_size:
        batches = [order.take(batch_size) for order in orders]
    return torch.stack(batches)
