"""The Hugging Face Trainer in two processes, DDP and FSDP2, against one plain loop in float64."""

import pytest
import torch
from torch.nn import functional as F

from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.micro_batches import NAMES
from tests.helpers.processes import torchrun

pytest.importorskip("transformers")
pytestmark = [pytest.mark.processes, pytest.mark.slow]

from tests.helpers.hugging_face_training import CASES, SMOOTHING, labels_of, model_of, steps_of


def summed(model, case, words):
    """The sum of a micro-batch's losses, and how many there are."""
    labels = labels_of(words)
    if case == "means":
        return model(words, labels)["loss"] * len(words), len(words)
    logits, labels = model(input_ids=words).logits[:, :-1], labels[:, 1:]
    smoothing = SMOOTHING if case == "smoothed" else 0.0
    losses = F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=smoothing)
    count = int((labels != -100).sum())
    # of GPT-2 the Trainer counts the first words too, which nothing predicts
    return losses[labels != -100].sum(), count + len(words) * (case == "tied")


def micro_batch(model, case, words):
    """Its mean gradient (P,), what that counts for, and the number of examples."""
    loss, count = summed(model, case, words)
    if count == 0:
        return None
    gradients = torch.autograd.grad(loss / count, list(model.parameters()))
    weight = 1.0 if case == "means" else float(count)
    return torch.cat([one.flatten() for one in gradients]), weight, len(words)


def process(parts):
    """Of a process: the sum of its gradients, what they are divided by, and its examples."""
    total = sum(weight * gradient for gradient, weight, _ in parts)
    return total, sum(weight for _, weight, _ in parts), sum(count for *_, count in parts)


def expected(case, seen):
    """By one process, over the updates of all, the micro-batches that either of them saw."""
    model, steps = model_of(case).double().train(), steps_of(case)
    running, num_skipped = RunningNoise(memory=1e12), 0
    for start in range(0, len(seen[0]), steps):
        batches = [words[start : start + steps] for words in seen]
        parts = [[micro_batch(model, case, words) for words in own] for own in batches]
        counted = [[part for part in own if part is not None] for own in parts]
        found = [process(own) for own in counted if own]
        sizes = [size for *_, size in found]
        if case in (
            "means",
            "own counts",
        ):  # each process has a mean of its own, and they count alike
            shares = [1 / len(found)] * len(found)
            means = [total / weight for total, weight, _ in found]
        else:  # sums of the examples' gradients, which count by examples
            tokens = sum(weight for _, weight, _ in found)
            shares = [size / sum(sizes) for size in sizes]
            means = [
                total / tokens / share for (total, *_), share in zip(found, shares, strict=True)
            ]
        whole = sum(share * mean for share, mean in zip(shares, means, strict=True))
        small = sum(share * float(mean @ mean) for share, mean in zip(shares, means, strict=True))
        small_size = 1 / sum(share / size for share, size in zip(shares, sizes, strict=True))
        big_size = 1 / sum(share**2 / size for share, size in zip(shares, sizes, strict=True))
        if big_size < 1.25 * small_size:  # one process alone had what counts
            num_skipped += 1
            continue
        estimates = two_batch(small, small_size, float(whole @ whole), big_size)
        running.add(*estimates, num_examples=big_size)
    values = [getattr(running.noise, name).value for name in NAMES]
    return values, (running.num_updates, num_skipped)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_trainer_in_two_processes(strategy, tmp_path):
    ranks = torchrun("hugging_face_training", tmp_path, strategy)
    for case in CASES:
        one, other = (rank[case] for rank in ranks)
        assert str(one["scalars"]) == str(other["scalars"])  # in which nan equals nan
        sharded = one["wrapped"] != "DistributedDataParallel"
        assert sharded is (strategy == "fsdp2"), one["wrapped"]
        if sharded and case == "smoothed":
            continue  # FSDPLlamaForCausalLM is no name of a causal model to the Trainer: no shift
        values, updates = expected(case, [one["seen"], other["seen"]])
        assert one["updates"] == updates, case
        assert [one["scalars"][name] for name in NAMES] == pytest.approx(values, rel=2e-4), case
