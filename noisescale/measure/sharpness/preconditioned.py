"""The curvature in the geometry of an adaptive optimizer: the spectrum of P^½HP^½."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisescale.measure.curvature.products import CurvatureProduct
from noisescale.measure.objective import flatten
from noisescale.measure.objective.preconditioner import (
    by_leaf,
    is_optimizer_state,
    preconditioner_of,
)
from noisescale.measure.sharpness.eigenvalue import Eigenvalue
from noisescale.measure.sharpness.step_rule import StepRule, step_rule
from noisescale.problems.problem import Source
from noisescale.statistics.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class PreconditionedSharpness:
    """λ_max(P^½HP^½) beside the limit of stability of the optimizer that P is of.

    Attributes:
        largest: λ_max of P^½(H + W)P^½ with both of its errors, in units of 1/η. W is the diagonal
            of the weight decay that goes through P, as that of Adam and RMSprop; zero otherwise.
        optimizer: "Adam", "AdamW", "RMSprop" or "Adagrad"; None: another, or P was given itself.
        learning_rate: η, the largest of the optimizer's groups; None where P was given itself.
        stable_sharpness: the limit, above which full-batch training leaves a minimum; None where
            none is known.
        formula: of the limit.
        notes: what a reader should know.
    """

    largest: Eigenvalue
    optimizer: str | None = None
    learning_rate: float | None = None
    stable_sharpness: float | None = None
    formula: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> Estimate | None:
        """λ_max over its limit, 1 at the edge of stability; None without a limit."""
        limit = self.stable_sharpness
        return None if limit is None else self.largest.value.scaled(1 / limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return {
            "largest": self.largest.to_dict(),
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "stable_sharpness": self.stable_sharpness,
            "ratio": self.ratio and self.ratio.to_dict(),
            "formula": self.formula,
            "notes": list(self.notes),
        }


class PreconditionedProduct:
    """u -> P^½(H + W)P^½u, the Hessian of the loss in the coordinates P^(−½)θ, with a penalty's.

    Args:
        operator: the product with H.
        root: P^½ (P,).
        penalty: the diagonal W (P,); None: zero.
    """

    def __init__(
        self, operator: CurvatureProduct, root: Tensor, penalty: Tensor | None = None
    ) -> None:
        self._operator = operator
        self._root = root
        self._penalty = penalty
        self.objective = operator.objective

    @property
    def dim(self) -> int:
        """P, the number of differentiated parameters."""
        return self._operator.dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype its products are computed in."""
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        """The device its products are computed on."""
        return self._operator.device

    @property
    def coarsest_dtype(self) -> torch.dtype:
        """The least precise dtype that its products go through."""
        return self._operator.coarsest_dtype

    def __call__(self, vector: Tensor) -> Tensor:
        """The product (P,) with a vector (P,)."""
        along = self._root * vector
        image = self._operator(along)
        if self._penalty is not None:
            image = image + self._penalty * along
        return self._root * image

    def on(self, examples: Source) -> PreconditionedProduct:
        """The same matrix of other examples, at the same point.

        Args:
            examples: whose mean loss it is the matrix of.
        """
        return PreconditionedProduct(self._operator.on(examples), self._root, self._penalty)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """P^½HP^½ of a problem, and what is known of the optimizer that P is of.

    Attributes:
        product: with the matrix.
        rule: of the optimizer; None where P was given itself.
    """

    product: PreconditionedProduct
    rule: StepRule | None

    @classmethod
    def of(
        cls, given: Optimizer | Mapping[str, Any], model: nn.Module, operator: CurvatureProduct
    ) -> Geometry:
        """That of a preconditioner.

        Args:
            given: P by parameter, an optimizer or its state, see `preconditioner_of`.
            model: whose parameters they are.
            operator: the product with H.

        Raises:
            SettingError: P that is not known, or of other parameters.
        """
        leaves = operator.objective.params()
        root = flatten(list(by_leaf(preconditioner_of(given, model), leaves).values())).sqrt()
        if not isinstance(given, Optimizer) and not is_optimizer_state(given):
            return cls(product=PreconditionedProduct(operator, root), rule=None)
        rule = step_rule(given, model)
        penalty = None
        if rule.penalties:
            parts = [
                torch.full_like(leaf, rule.penalties.get(name, 0.0))
                for name, leaf in leaves.items()
            ]
            penalty = flatten(parts)
        return cls(product=PreconditionedProduct(operator, root, penalty), rule=rule)

    def sharpness(self, largest: Eigenvalue) -> PreconditionedSharpness:
        """The eigenvalue beside the optimizer's limit.

        Args:
            largest: λ_max of the product.
        """
        sharpness, rule = PreconditionedSharpness(largest=largest), self.rule
        if rule is None:
            return sharpness
        return replace(
            sharpness,
            optimizer=rule.kind,
            learning_rate=rule.learning_rate,
            stable_sharpness=rule.limit,
            formula=rule.formula,
            notes=rule.notes,
        )
