"""The score of bagged models on the examples that their bootstrap samples left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from noisescale.errors import SettingError, check_count
from noisescale.statistics.display import Shown, Summary, counted, share
from noisescale.statistics.estimate import Estimate, from_samples
from noisescale.statistics.scores.accuracy import accuracy_estimate
from noisescale.statistics.scores.bias_variance import outcomes_of


@dataclass(frozen=True, kw_only=True, repr=False)
class OutOfBag(Shown):
    """What `out_of_bag` finds; the errors are those of the examples, for the models as they are.

    Attributes:
        num_models: M.
        num_examples: how many examples two or more models have not been trained on, of which all
            scores are.
        num_left_out: how many examples have fewer such models, and are left out.
        single: the mean score of one model on examples it has not been trained on.
        voted: the score of the mean of all models that have not been trained on an example, about
            .37 M of them: Breiman's out-of-bag estimate.
        accuracy: the share of examples on which that mean is largest at their class; None where
            the outcomes are no classes.
        of_one: (n,), for each example the mean score of one model.
        of_pairs: (n,), for each example the mean product of the errors of two.
    """

    num_models: int
    num_examples: int
    num_left_out: int
    single: Estimate
    voted: Estimate
    accuracy: Estimate | None
    of_one: np.ndarray
    of_pairs: np.ndarray

    def ensemble(self, size: int) -> Estimate:
        """The score of the mean of several models, from pairs of them, without bias.

        Args:
            size: m, how many models; M for all that there are, of which `voted` has fewer.

        Returns:
            V + (S − V)/m with S the mean score of one model and V the mean product of two models'
            errors, both on examples that neither has been trained on.

        Raises:
            SettingError: no whole number of models.
        """
        check_count("models of an ensemble", size)
        return from_samples(self.of_pairs + (self.of_one - self.of_pairs) / size)

    def _summary(self) -> Summary:
        total = self.num_examples + self.num_left_out
        rows = [("one model", str(self.single)), ("those left out, together", str(self.voted))]
        rows.append((f"{self.num_models} models", str(self.ensemble(self.num_models))))
        if self.accuracy is not None:
            rows.append(("accuracy", str(self.accuracy)))
        return Summary(
            title=f"Out-of-bag score of {counted(self.num_models, 'model')} on "
            f"{share(self.num_examples, total)} examples",
            rows=rows,
        )


def out_of_bag(predictions: np.ndarray, targets: np.ndarray, in_bag: np.ndarray) -> OutOfBag:
    """The squared error of bagged models on examples that they were not trained on.

    Breiman 1996, Out-of-bag estimation: no example is held out, since a bootstrap sample of N
    misses each with probability (1 − 1/N)ᴺ ≈ .37.

    Args:
        predictions: (M, N, C) of each model on every example of the pool that the samples are from;
            each model of a sample, and a seed, of its own.
        targets: classes (N,) as whole numbers, or (N, C) numbers.
        in_bag: (M, N): whether, or how many times, an example is in a model's sample.

    Returns:
        The score of one model, and of several together, with errors.

    Raises:
        SettingError: shapes that do not fit together, numbers that are not finite, or fewer than
            two examples that two models were not trained on.

    Examples:
        >>> import numpy as np
        >>> from noisescale import out_of_bag
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(2, size=400)
        >>> samples = rng.integers(400, size=(20, 400))  # of 20 models
        >>> in_bag = np.array([np.bincount(sample, minlength=400) for sample in samples])
        >>> guesses = rng.dirichlet((2, 2), size=(20, 400))  # which know nothing
        >>> out_of_bag(guesses, labels, in_bag).single
        Estimate(0.601 ± 0.010 (0.581–0.620))
    """
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    in_bag = np.asarray(in_bag)
    if predictions.ndim != 3 or in_bag.shape != predictions.shape[:2]:
        raise SettingError(
            f"predictions of shape {predictions.shape} and in_bag of shape {in_bag.shape}: give "
            "(models, examples, classes) and (models, examples)"
        )
    outcomes = outcomes_of(targets, predictions.shape[1:])
    errors = predictions.astype(np.float64) - outcomes  # (M, N, C)
    if not np.isfinite(errors).all():
        raise SettingError("predictions or targets are not finite: leave out models that diverged")
    is_out = in_bag == 0  # (M, N)
    models = is_out.sum(0)  # (N,), that have not been trained on an example
    usable = models >= 2
    if usable.sum() < 2:
        raise SettingError(
            f"{counted(int(usable.sum()), 'example')} that two models were not trained on: give "
            "more models, each of a bootstrap sample of its own"
        )
    models, outcomes = models[usable], outcomes[usable]
    kept = errors[:, usable] * is_out[:, usable, None]  # (M, n, C)
    squares = np.square(kept).sum((0, 2))  # (n,), Σ |e|² over these models
    square_of_sum = np.square(kept.sum(0)).sum(1)  # (n,), |Σ e|²
    accuracy = None
    if targets.ndim == 1:
        votes = kept.sum(0) / models[:, None] + outcomes  # (n, C), the mean prediction
        accuracy = accuracy_estimate(int((votes.argmax(1) == targets[usable]).sum()), len(votes))
    of_one = squares / models
    return OutOfBag(
        num_models=len(predictions),
        num_examples=int(usable.sum()),
        num_left_out=int((~usable).sum()),
        single=from_samples(of_one),
        voted=from_samples(square_of_sum / models**2),
        accuracy=accuracy,
        of_one=of_one,
        of_pairs=(square_of_sum - squares) / (models * (models - 1)),
    )
