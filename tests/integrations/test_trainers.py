"""The callbacks in the real Lightning and Hugging Face trainers, against gradients in closed form."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from noisescale.errors import SettingError
from noisescale.statistics.running_noise import RunningNoise, two_batch

pl = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

from noisescale.integrations.lightning import NoiseScaleCallback as LightningCallback  # noqa: E402
from noisescale.integrations.transformers import NoiseScaleCallback as TransformersCallback  # noqa: E402

BATCH, STEPS = 2, 4  # examples in a micro-batch, micro-batches in an update
NAMES = ("squared_gradient_norm", "gradient_variance")
lightning_warns = pytest.mark.filterwarnings(
    r"ignore:.*isinstance\(treespec, LeafSpec\).*:FutureWarning"
)


def data(count=22):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, generator=generator), 5 * torch.randn(1, generator=generator))
        for _ in range(count)
    ]


def mean_gradient(weight, inputs, targets):
    """Of (w·x − y)², in closed form."""
    return (2 * inputs * (inputs @ weight.T - targets)).mean(0).numpy()


def replayed(updates, weights=None):
    """The averages over updates, each the weight and the micro-batches it was made of."""
    running = RunningNoise()
    for weight, parts in updates:
        means = [mean_gradient(weight, *part) for part in parts]
        counts = np.array([len(part[0]) for part in parts])
        shares = np.full(len(parts), 1 / len(parts)) if weights is None else weights(parts)
        whole, size = shares @ means, 1 / (shares**2 / counts).sum()
        if len(parts) > 1:
            running.memory = running.memory or 100 * size
            found = two_batch(means[0] @ means[0], counts[0], whole @ whole, size)
            running.add(*found, num_examples=size)
    return running.noise


def assert_same(found, expected):
    for name in NAMES:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.value, one.stderr) == pytest.approx((other.value, other.stderr), rel=1e-4)


class Recorder(pl.LightningModule):
    """Linear regression that notes what each update is made of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.updates = []

    def training_step(self, batch, index):
        if index % STEPS == 0:
            self.updates.append((self.layer.weight.detach().clone(), []))
        self.updates[-1][1].append(batch)
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def lightning_trainer(folder, callback, **settings):
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "accumulate_grad_batches": STEPS,
            "gradient_clip_val": 0.1,
            "logger": pl.loggers.CSVLogger(folder),
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [callback],
            "max_epochs": 2,
            **settings,
        }
    )


@lightning_warns
def test_lightning_measures_what_it_trains_with(tmp_path):
    callback, model = LightningCallback(), Recorder()
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


@lightning_warns
def test_lightning_goes_on_from_a_checkpoint(tmp_path):
    whole, first, second = (LightningCallback() for _ in range(3))
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


class Manual(Recorder):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@lightning_warns
def test_lightning_refuses_what_has_no_noise(tmp_path):
    loader = DataLoader(data(), batch_size=BATCH)
    with pytest.raises(SettingError, match="accumulate_grad_batches of 2 or more"):
        lightning_trainer(tmp_path, LightningCallback(), accumulate_grad_batches=1).fit(
            Recorder(), loader
        )
    with pytest.raises(SettingError, match="manual optimization"):
        lightning_trainer(
            tmp_path, LightningCallback(), accumulate_grad_batches=1, gradient_clip_val=None
        ).fit(Manual(), loader)
    callback = LightningCallback(num_examples=lambda batch: len(batch[1]))
    with pytest.warns(UserWarning, match="returned `None`"):
        lightning_trainer(tmp_path, callback).fit(Silent(), loader)
    assert callback.monitor.num_updates == 0


PROCESSES = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from tests.integrations.test_trainers import LightningCallback, Recorder, data, lightning_trainer

folder = Path(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(1)
callback, model = LightningCallback(), Recorder()
trainer = lightning_trainer(folder, callback, devices=2, strategy="ddp", max_epochs=1)
trainer.fit(model, DataLoader(data(16), batch_size=2))
found = {"updates": model.updates, "scalars": callback.monitor.scalars()}
torch.save(found, folder / f"{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_lightning_over_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROCESSES)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert str(ranks[0]["scalars"]) == str(ranks[1]["scalars"])
    (weight, _), *others = ranks[0]["updates"]
    assert not others
    means = np.array(
        [
            np.mean([mean_gradient(weight, *part) for part in rank["updates"][0][1]], axis=0)
            for rank in ranks
        ]
    )
    whole = means.mean(0)
    expected = two_batch((means**2).sum(1).mean(), 8, whole @ whole, 16)
    found = [ranks[0]["scalars"][name] for name in NAMES]
    assert found == pytest.approx(expected, rel=1e-4)


class Regression(nn.Module):
    """For the Hugging Face Trainer: notes what each micro-batch was and at which weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.seen = []

    def forward(self, x, labels):
        self.seen.append((self.layer.weight.detach().clone(), (x, labels)))
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


class Tokens(Regression):
    """Its loss is a mean over the labels that are not ignored, in all of an update."""

    def forward(self, x, labels, num_items_in_batch=None, **others):
        if self.training:
            self.seen.append((self.layer.weight.detach().clone(), (x, labels)))
        kept = labels != -100
        losses = torch.where(kept, (self.layer(x) - labels) ** 2, 0.0).sum()
        return {"loss": losses / (kept.sum() if num_items_in_batch is None else num_items_in_batch)}


def updates_of(model):
    """What the model has seen, by update: micro-batches at one weight."""
    found = []
    for weight, part in model.seen:
        if not found or not torch.equal(found[-1][0], weight):
            found.append((weight, []))
        found[-1][1].append(part)
    return found


def trainer_of(folder, model, *, rows=None, **settings):
    rows = rows or [{"x": x, "labels": y} for x, y in data()]
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": STEPS,
            "max_grad_norm": 0.1,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "save_strategy": "no",
            **settings,
        }
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows)


def test_transformers_measures_what_it_trains_with(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model)
    callback = TransformersCallback().add_to(trainer)
    heard = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **others):
            heard.append(dict(logs))

    trainer.add_callback(Reporter())
    trainer.train()
    updates = updates_of(model)
    assert [len(parts) for _, parts in updates] == [4, 4, 3] * 2  # ragged, and clipped
    assert callback.monitor.num_updates == 6
    assert_same(callback.monitor.noise(), replayed(updates))
    history = [row for row in trainer.state.log_history if "loss" in row]
    expected = [replayed(updates[: count + 1]).gradient_variance.value for count in range(6)]
    for rows in (history, [row for row in heard if "loss" in row]):
        found = [row["noise_scale/gradient_variance"] for row in rows]
        assert found == pytest.approx(expected, rel=1e-4)
    json.dumps(trainer.state.log_history, allow_nan=False)
    assert not model._forward_pre_hooks
    assert trainer.callback_handler.callbacks[0] is callback


def test_transformers_weighs_micro_batches_by_tokens(tmp_path):
    rows = [
        {"x": x, "labels": torch.tensor([-100.0]) if number % 3 == 0 else y}
        for number, (x, y) in enumerate(data())
    ]
    model = Tokens()
    trainer = trainer_of(tmp_path, model, rows=rows)
    callback = TransformersCallback().add_to(trainer)
    trainer.train()
    running = RunningNoise()
    for weight, parts in updates_of(model):
        kept = [part[1].ne(-100)[:, 0] for part in parts]
        counts = np.array([int(one.sum()) for one in kept])
        if not counts.all():  # nothing to compare with
            continue
        means = [
            mean_gradient(weight, x[one], y[one]) for (x, y), one in zip(parts, kept, strict=True)
        ]
        shares = counts / counts.sum()
        whole, size = shares @ means, 1 / (shares**2 / 2).sum()
        running.add(*two_batch(means[0] @ means[0], 2, whole @ whole, size), num_examples=size)
        running.memory = running.memory or 100 * size
    assert_same(callback.monitor.noise(), running.noise)


def test_transformers_goes_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Regression()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(tmp_path, model, save_strategy="epoch", lr_scheduler_type="constant")
    whole = TransformersCallback().add_to(trainer)
    trainer.train()
    model = Regression()
    model.load_state_dict(start)
    trainer = trainer_of(
        tmp_path / "again", model, lr_scheduler_type="constant", save_strategy="epoch"
    )
    second = TransformersCallback().add_to(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert second.monitor.num_updates == 6
    assert second.monitor.state_dict() == whole.monitor.state_dict()


def test_transformers_refuses_what_has_no_noise(tmp_path):
    trainer = trainer_of(tmp_path, Regression(), gradient_accumulation_steps=1)
    TransformersCallback().add_to(trainer)
    with pytest.raises(SettingError, match="gradient_accumulation_steps to 2 or more"):
        trainer.train()


def test_an_update_of_one_micro_batch_is_left_out(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model, rows=[{"x": x, "labels": y} for x, y in data(10)])
    callback = TransformersCallback().add_to(trainer)
    trainer.train()
    updates = updates_of(model)
    assert [len(parts) for _, parts in updates] == [4, 1] * 2
    assert callback.monitor.num_updates == 2
    assert_same(callback.monitor.noise(), replayed(updates))
    assert math.isfinite(callback.monitor.noise().gradient_variance.stderr)


def test_what_an_update_left_behind_is_not_measured(tmp_path):
    """A dataset of unknown length: the Trainer leaves the epoch's last gradients in place for the next."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (
                {"x": x, "labels": y} for x, y in data(20)
            )  # ten micro-batches: 4, 4 and 2 more

    model = Regression()
    trainer = trainer_of(tmp_path, model, rows=Stream(), max_steps=4)
    callback = TransformersCallback().add_to(trainer)
    trainer.train()
    clean = [update for update in updates_of(model) if len(update[1]) == 4]
    assert callback.monitor.num_updates == 3
    assert_same(callback.monitor.noise(), replayed([*clean[:2], clean[-1]]))


@lightning_warns
def test_a_ragged_last_batch_does_not_end_a_training(tmp_path):
    """Six micro-batches, the last of one example: that and the four before it are worth 3.2."""
    callback = LightningCallback()
    loader = DataLoader(data(21), batch_size=4)
    lightning_trainer(tmp_path, callback, accumulate_grad_batches=2, max_epochs=1).fit(
        Recorder(), loader
    )
    assert (callback.monitor.num_updates, callback.monitor.num_skipped) == (2, 1)
    trainer = trainer_of(
        tmp_path,
        Regression(),
        rows=[{"x": x, "labels": y} for x, y in data(21)],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
    )
    other = TransformersCallback().add_to(trainer)
    trainer.train()
    assert (other.monitor.num_updates, other.monitor.num_skipped) == (2, 1)


def test_a_training_that_was_interrupted_leaves_no_hooks_behind(tmp_path):
    class Interrupting(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **others):
            if state.global_step == 1:
                raise KeyboardInterrupt

    model = Regression()
    trainer = trainer_of(tmp_path, model)
    callback = TransformersCallback().add_to(trainer)
    interrupting = Interrupting()
    trainer.add_callback(interrupting)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupting)
    model.seen.clear()
    model.zero_grad()
    trainer.train()
    assert_same(callback.monitor.noise(), replayed(updates_of(model)))
    assert not model._forward_pre_hooks


@lightning_warns
def test_lightning_takes_the_loss_scale_out(tmp_path):
    """As 16-bit mixed precision has it: scaled in the backward pass, unscaled before the optimizer step."""

    class Scaler:
        def get_scale(self):
            return 64.0

    class Scaled(LightningCallback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.layer.weight.grad *= 64
            trainer.precision_plugin.scaler = Scaler()
            super().on_after_backward(trainer, pl_module)
            pl_module.layer.weight.grad /= 64

    callback, model = Scaled(), Recorder()
    lightning_trainer(tmp_path, callback, max_epochs=1).fit(
        model, DataLoader(data(), batch_size=BATCH)
    )
    assert_same(callback.monitor.noise(), replayed(model.updates))
