"""The callback in the real Lightning Trainer, against gradients in closed form."""

from collections import UserDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.micro_batches import BATCH, NAMES, assert_same, data, mean_gradient, replayed
from tests.helpers.processes import torchrun

pytest.importorskip("lightning.pytorch")

from noisescale.integrations.lightning import NoiseScaleCallback, _first_length
from tests.helpers.lightning_training import Manual, Recorder, lightning_trainer

pytestmark = pytest.mark.filterwarnings(
    r"ignore:.*isinstance\(treespec, LeafSpec\).*:FutureWarning"
)


def test_it_measures_what_it_trains_with(tmp_path):
    callback, model = NoiseScaleCallback(), Recorder()
    trainer = lightning_trainer(tmp_path, callback)
    trainer.fit(model, DataLoader(data(), batch_size=BATCH))
    assert [len(parts) for _, parts in model.updates] == [4, 4, 3] * 2  # ragged, and clipped
    assert callback.monitor.num_updates == 6
    assert_same(callback.monitor.noise(), replayed(model.updates))
    logged = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    assert len(logged) == 6
    expected = [replayed(model.updates[: count + 1]).gradient_variance.value for count in range(6)]
    assert logged["noise_scale/gradient_variance"].tolist() == pytest.approx(expected, rel=1e-4)
    assert "noise_scale/simple" in logged


class WithAdam(Recorder):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-2)


def test_it_measures_in_the_geometry_of_the_optimizer(tmp_path):
    callback, model = NoiseScaleCallback(geometry="optimizer"), WithAdam()
    trainer = lightning_trainer(tmp_path, callback, gradient_clip_val=None)
    trainer.fit(model, DataLoader(data(24), batch_size=BATCH))  # four batches in each update
    assert callback.monitor.num_updates == 5  # before the first step there is no v
    assert_same(callback.monitor.noise(), replayed(model.updates, adam=(0.95, 1e-2)))
    logged = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    assert "noise_scale/preconditioned_simple" in logged
    assert "noise_scale/simple" not in logged


def test_a_geometry_that_there_is_not_is_refused_or_told(tmp_path):
    with pytest.raises(SettingError, match="geometry 'both': choose one of plain, optimizer"):
        NoiseScaleCallback(geometry="both")
    callback = NoiseScaleCallback(geometry="optimizer")
    with pytest.warns(UserWarning, match="not measured: a preconditioner of SGD"):
        lightning_trainer(tmp_path, callback).fit(Recorder(), DataLoader(data(), batch_size=BATCH))


def test_a_trainer_that_never_logs_trains(tmp_path):
    callback = NoiseScaleCallback()
    trainer = lightning_trainer(tmp_path, callback, log_every_n_steps=0)
    trainer.fit(Recorder(), DataLoader(data(), batch_size=BATCH))
    assert callback.monitor.num_updates == 6


def test_it_goes_on_from_a_checkpoint(tmp_path):
    whole, first, second = (NoiseScaleCallback() for _ in range(3))
    loader = DataLoader(data(), batch_size=BATCH)
    torch.manual_seed(0)
    lightning_trainer(tmp_path, whole).fit(Recorder(), loader)
    torch.manual_seed(0)
    trainer = lightning_trainer(tmp_path, first, max_epochs=1)
    trainer.fit(Recorder(), loader)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    lightning_trainer(tmp_path, second).fit(Recorder(), loader, ckpt_path=tmp_path / "half.ckpt")
    assert second.monitor.num_updates == 6
    assert second.monitor.state_dict() == whole.monitor.state_dict()


class Silent(Recorder):
    def training_step(self, batch, index):
        return None


def test_what_has_no_noise_is_trained_all_the_same(tmp_path):
    loader = DataLoader(data(), batch_size=BATCH)
    for model, reason in (
        (Recorder(), "accumulate_grad_batches of 2 or more"),
        (Manual(), "manual optimization"),
    ):
        callback = NoiseScaleCallback()
        trainer = lightning_trainer(
            tmp_path, callback, accumulate_grad_batches=1, gradient_clip_val=None
        )
        with pytest.warns(UserWarning, match=reason):
            trainer.fit(model, loader)
        assert trainer.current_epoch == 2
        with pytest.raises(MeasurementError, match=f"no noise scale yet: .*{reason}"):
            callback.monitor.noise()
    callback = NoiseScaleCallback(num_examples=unknown_size)
    with pytest.warns(UserWarning, match="not measured: a batch of nothing"):
        lightning_trainer(tmp_path, callback).fit(Recorder(), loader)
    assert callback.monitor.num_updates == 0


def test_manual_optimization_has_a_monitor_of_its_own(tmp_path):
    model, callback = Manual(), NoiseScaleCallback()
    trainer = lightning_trainer(
        tmp_path, callback, callbacks=[], accumulate_grad_batches=1, gradient_clip_val=None
    )
    trainer.fit(model, DataLoader(data(16), batch_size=BATCH))
    assert [len(parts) for _, parts in model.updates] == [4] * 4
    assert_same(model.noise_monitor.noise(), replayed(model.updates))


def test_a_gradient_that_cannot_be_compared_ends_no_training(tmp_path):
    class Meddling(NoiseScaleCallback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.monitor.discard()
            self.monitor.micro_batch(2, scale=2.0)  # which is not in the gradient
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    callback = Meddling()
    trainer = lightning_trainer(tmp_path, callback)
    with pytest.warns(UserWarning, match="the noise scale is not measured: update"):
        trainer.fit(Recorder(), DataLoader(data(), batch_size=BATCH))
    assert trainer.current_epoch == 2


def unknown_size(batch):
    raise SettingError("a batch of nothing")


def test_a_training_step_without_a_loss_leaves_nothing_out(tmp_path):
    loader = DataLoader(data(), batch_size=BATCH)
    callback = NoiseScaleCallback(num_examples=lambda batch: len(batch[1]))
    with pytest.warns(UserWarning, match="returned `None`"):
        lightning_trainer(tmp_path, callback).fit(Silent(), loader)
    assert callback.monitor.num_updates == 0


def over_processes(ranks):
    """|G|² and tr Σ: small batches are the processes' mean gradients, the big one their mean."""
    running = RunningNoise()
    for updates in zip(*(rank["updates"] for rank in ranks), strict=True):
        assert torch.equal(updates[0][0], updates[1][0])  # one weight
        means = np.array(
            [
                np.mean([mean_gradient(weight, *part) for part in parts], axis=0)
                for weight, parts in updates
            ]
        )
        whole, size = means.mean(0), BATCH * len(updates[0][1])
        small = (means**2).sum(1).mean()
        running.memory = running.memory or 100 * 2 * size
        running.add(*two_batch(small, size, whole @ whole, 2 * size), num_examples=2 * size)
    return [getattr(running.noise, name).value for name in NAMES]


def test_the_older_sharding_is_refused():
    """Which Lightning starts on a GPU alone."""
    from lightning.pytorch.strategies import FSDPStrategy

    strategy = FSDPStrategy()
    strategy._model = torch.nn.Linear(3, 1)  # its wrapper needs processes
    trainer = SimpleNamespace(
        world_size=2, strategy=strategy, accumulate_grad_batches=4, callbacks=[]
    )
    callback = NoiseScaleCallback()
    with pytest.warns(UserWarning, match="2 processes by FSDPStrategy: only Distributed.* FSDP2"):
        callback.on_fit_start(trainer, Recorder())


@pytest.mark.processes
@pytest.mark.slow
def test_it_over_two_processes(tmp_path):
    ranks = torchrun("lightning_training", tmp_path)
    micro_batches = {
        "ddp": [4] * 2,
        "schedule": [1] * 4 + [4],
        "manual": [4] * 2,
        "fsdp2": [1] * 8,
    }
    for case, counts in micro_batches.items():
        both = [rank[case] for rank in ranks]
        assert str(both[0]["scalars"]) == str(both[1]["scalars"])
        assert [len(parts) for _, parts in both[0]["updates"]] == counts, case
        found = [both[0]["scalars"][name] for name in NAMES]
        assert found == pytest.approx(over_processes(both), rel=1e-4), case
    for rank in ranks:  # Lightning reduces each of its batches
        refused = rank["fsdp2 accumulated"]
        assert "reduces every batch of a sharded model" in refused["unmeasured"]
        assert refused["epochs"] == 2


def test_a_ragged_last_batch_does_not_end_a_training(tmp_path):
    """Six micro-batches, the last of one example: that and the four before it are worth 3.2."""
    callback = NoiseScaleCallback()
    loader = DataLoader(data(21), batch_size=4)
    lightning_trainer(tmp_path, callback, accumulate_grad_batches=2, max_epochs=1).fit(
        Recorder(), loader
    )
    assert (callback.monitor.num_updates, callback.monitor.num_skipped) == (2, 1)


@pytest.mark.parametrize("unscales_itself", [False, True])
def test_it_takes_the_loss_scale_out(tmp_path, unscales_itself):
    """As in 16-bit mixed precision: scaled in the backward pass, unscaled before the step.

    Or by it, as by a fused optimizer, whose gradients are still scaled before.
    """

    class Scaler:
        def get_scale(self):
            return 64.0

    class Scaled(NoiseScaleCallback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.layer.weight.grad *= 64
            trainer.precision_plugin.scaler = Scaler()
            super().on_after_backward(trainer, pl_module)
            pl_module.layer.weight.grad /= 64

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            factor = 64 if unscales_itself else 1
            optimizer._step_supports_amp_scaling = unscales_itself
            pl_module.layer.weight.grad *= factor
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            pl_module.layer.weight.grad /= factor

    callback, model = Scaled(), Recorder()
    lightning_trainer(tmp_path, callback, max_epochs=1).fit(
        model, DataLoader(data(), batch_size=BATCH)
    )
    assert_same(callback.monitor.noise(), replayed(model.updates))


class Summed(Recorder):
    def training_step(self, batch, index):
        return super().training_step(batch, index) * len(batch[0])


def test_a_loss_that_is_a_sum_weighs_batches_by_its_terms(tmp_path):
    """Twenty-one examples in batches of four: the last, of one, counts a quarter of the others."""
    callback, model = NoiseScaleCallback(weight=lambda batch: len(batch[0])), Summed()
    lightning_trainer(tmp_path, callback).fit(model, DataLoader(data(21), batch_size=4))

    def counts(parts):
        sizes = np.array([len(part[0]) for part in parts])
        return sizes / sizes.sum()

    assert [len(parts) for _, parts in model.updates] == [4, 2] * 2
    expected = replayed(model.updates, counts)
    # the second updates, of four and one examples, are worth 5 of 4: left out below 1.25 alone
    assert callback.monitor.num_updates == 4
    assert_same(callback.monitor.noise(), expected)


class Scheduled(Recorder):
    """Notes its batches; which of them make an update the test knows."""

    def training_step(self, batch, index):
        self.updates.append((self.layer.weight.detach().clone(), [batch]))
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()


def test_a_schedule_of_accumulation_is_followed(tmp_path):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    callback, model = NoiseScaleCallback(), Scheduled()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2, 2: 5})
    trainer = lightning_trainer(
        tmp_path, callback, accumulate_grad_batches=1, callbacks=[callback, scheduler], max_epochs=3
    )
    trainer.fit(model, DataLoader(data(20), batch_size=BATCH))
    batches, updates = iter(model.updates), []
    for count in [1] * 10 + [2] * 5 + [5] * 2:
        taken = [next(batches) for _ in range(count)]
        updates.append((taken[0][0], [part for _, parts in taken for part in parts]))
    assert (callback.monitor.num_updates, callback.monitor.num_skipped) == (7, 10)
    assert_same(callback.monitor.noise(), replayed(updates))


@pytest.mark.parametrize(
    "batch",
    [
        {"name": ["a", "b", "c"], "x": torch.ones(3, 2)},
        {"temperature": torch.tensor(1.0), "x": torch.ones(3, 2)},
        UserDict(ids=torch.ones(3, 2)),  # as the tokenizers' BatchEncoding
        ["a", (1.5, torch.ones(3))],
    ],
    ids=["strings", "a scalar", "no dict", "nested"],
)
def test_examples_are_counted_by_the_first_tensor_that_has_any(batch):
    assert _first_length(batch) == 3


@pytest.mark.parametrize("batch", [["a", "b"], "ab", 3, {}, torch.tensor(1.0)], ids=str)
def test_a_batch_without_examples_to_count_is_refused(batch):
    with pytest.raises(SettingError, match="give NoiseScaleCallback"):
        _first_length(batch)
