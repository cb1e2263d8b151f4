"""The callback in the real Hugging Face Trainer, against gradients in closed form."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.micro_batches import BATCH, STEPS, assert_same, data, mean_gradient, replayed

transformers = pytest.importorskip("transformers")

from noisescale.integrations.transformers import NoiseScaleCallback


class Regression(nn.Module):
    """For the Hugging Face Trainer: notes what each micro-batch was and at which weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.seen = []

    def forward(self, x, labels):
        self.note(x, labels)
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}

    def note(self, x, labels):
        if self.training and torch.is_grad_enabled():
            self.seen.append((self.layer.weight.detach().clone(), (x, labels)))


class Tokens(Regression):
    """Its loss is a mean over the labels that are not ignored, in all of an update."""

    def forward(self, x, labels, num_items_in_batch=None, **others):
        self.note(x, labels)
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


def trainer_of(folder, model, *, rows=None, build=transformers.Trainer, **settings):
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
    return build(model=model, args=arguments, train_dataset=rows)


def test_a_training_step_of_the_trainers_own_stays(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model)
    step, calls = trainer.training_step, []

    def counted(*arguments, **settings):
        calls.append(arguments)
        return step(*arguments, **settings)

    trainer.training_step = counted
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    assert len(calls) == len(model.seen) > 0
    assert trainer.training_step is counted
    assert callback.monitor.noise().gradient_variance.value > 0


def test_it_measures_in_the_geometry_of_the_optimizer(tmp_path):
    model = Regression()
    adam = {"adam_beta2": 0.95, "adam_epsilon": 1e-2, "weight_decay": 0.0, "max_grad_norm": 0.0}
    trainer = trainer_of(tmp_path, model, **adam)
    callback = NoiseScaleCallback(geometry="optimizer").add_to(trainer)
    trainer.train()
    assert callback.monitor.num_updates == 5  # before the first step there is no v
    assert_same(callback.monitor.noise(), replayed(updates_of(model), adam=(0.95, 1e-2)))
    assert "noise_scale/preconditioned_gradient_variance" in trainer.state.log_history[-2]
    assert "under AdamW" in repr(callback.monitor)


def test_sgd_has_no_geometry_of_its_own_and_trains_all_the_same(tmp_path):
    with pytest.raises(SettingError, match="geometry 'adam': choose one of plain, optimizer"):
        NoiseScaleCallback(geometry="adam")
    trainer = trainer_of(tmp_path, Regression(), optim="sgd")
    callback = NoiseScaleCallback(geometry="optimizer").add_to(trainer)
    with pytest.warns(UserWarning, match="not measured: a preconditioner of SGD"):
        trainer.train()
    assert callback.monitor is None
    assert trainer.state.global_step == 6


def test_it_measures_what_it_trains_with(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model)
    callback = NoiseScaleCallback().add_to(trainer)
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


def test_a_step_of_several_backward_passes_is_seen_as_a_whole(tmp_path):
    """Of a subclass, as for losses that are added up one by one."""

    class Twofold(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = model(**self._prepare_inputs(inputs))["loss"] / STEPS
            for share in (0.25, 0.75):
                self.accelerator.backward(share * loss, retain_graph=True)
            return loss.detach()

    model = Regression()
    rows = [{"x": x, "labels": y} for x, y in data(2 * STEPS * BATCH)]
    trainer = trainer_of(tmp_path, model, rows=rows, build=Twofold)
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    assert callback.monitor.num_updates == 4
    assert_same(callback.monitor.noise(), replayed(updates_of(model)))


def test_a_step_that_leaves_no_gradient_is_trained_all_the_same(tmp_path):
    class Idle(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            return torch.zeros(())

    trainer = trainer_of(tmp_path, Regression(), build=Idle, max_grad_norm=0.0)
    callback = NoiseScaleCallback().add_to(trainer)
    with pytest.warns(UserWarning, match="the noise scale is not measured: no parameter has a"):
        trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(MeasurementError, match="no noise scale yet: no parameter has a gradient"):
        callback.monitor.noise()


def test_labels_none_of_which_counts_end_no_training(tmp_path):
    rows = [{"x": x, "labels": torch.tensor([-100.0])} for x, _ in data()]
    trainer = trainer_of(tmp_path, Tokens(), rows=rows, learning_rate=0.0)
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    assert (callback.monitor.num_updates, callback.monitor.num_skipped) == (0, 6)


def test_it_weighs_micro_batches_by_tokens(tmp_path):
    rows = [
        {"x": x, "labels": torch.tensor([-100.0]) if number % 3 == 0 else y}
        for number, (x, y) in enumerate(data())
    ]
    model = Tokens()
    trainer = trainer_of(tmp_path, model, rows=rows)
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    running = RunningNoise()
    for weight, parts in updates_of(model):
        kept = [part[1].ne(-100)[:, 0] for part in parts]
        counts = np.array([int(one.sum()) for one in kept if one.any()])  # others add nothing
        means = [
            mean_gradient(weight, x[one], y[one])
            for (x, y), one in zip(parts, kept, strict=True)
            if one.any()
        ]
        shares = counts / counts.sum()
        whole, size = shares @ means, 2.0 * len(counts)
        # the sum of its examples' gradients, as a mean over as many examples as it has
        first = shares[0] * len(counts) * means[0]
        running.add(*two_batch(first @ first, 2, whole @ whole, size), num_examples=size)
        running.memory = running.memory or 100 * size
    assert_same(callback.monitor.noise(), running.noise)


class Deaf(Regression):
    """Takes any keyword, as BERT, and leaves the number of items alone."""

    def forward(self, x, labels, **others):
        return super().forward(x, labels)


def test_a_model_that_leaves_the_number_of_items_alone_is_measured_by_its_means(tmp_path):
    """Whose gradients the Trainer adds up, undivided."""
    model = Deaf()
    trainer = trainer_of(tmp_path, model)
    callback = NoiseScaleCallback().add_to(trainer)
    with pytest.warns(UserWarning, match="loss of Deaf is not divided by the number of items"):
        trainer.train()
    running = RunningNoise()
    for weight, parts in updates_of(model):
        means = [mean_gradient(weight, x, y) for x, y in parts]
        whole, size = np.mean(means, 0), BATCH * len(means)
        running.add(*two_batch(means[0] @ means[0], BATCH, whole @ whole, size), num_examples=size)
        running.memory = running.memory or 100 * size
    assert_same(callback.monitor.noise(), running.noise)


class Normed(Deaf):
    """With statistics that a forward pass in training mode moves, and dropout."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.3)

    def forward(self, x, labels, num_items_in_batch=1, **others):
        loss = super().forward(self.drop(self.norm(x)), labels)["loss"]
        return {"loss": loss * len(x) / num_items_in_batch}


def test_a_training_is_the_same_with_it(tmp_path):
    trained = []
    for name in ("with", "without"):
        torch.manual_seed(0)
        model = Normed()
        trainer = trainer_of(tmp_path / name, model)
        if name == "with":
            NoiseScaleCallback().add_to(trainer)
        trainer.train()
        trained.append(model.state_dict())
    for key, value in trained[0].items():
        assert torch.equal(value, trained[1][key]), key


def test_it_goes_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Regression()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(tmp_path, model, save_strategy="epoch", lr_scheduler_type="constant")
    whole = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    model = Regression()
    model.load_state_dict(start)
    trainer = trainer_of(
        tmp_path / "again", model, lr_scheduler_type="constant", save_strategy="epoch"
    )
    second = NoiseScaleCallback().add_to(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert second.monitor.num_updates == 6
    assert second.monitor.state_dict() == whole.monitor.state_dict()


def test_what_has_no_noise_is_trained_all_the_same(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model, gradient_accumulation_steps=1)
    callback = NoiseScaleCallback().add_to(trainer)
    with pytest.warns(UserWarning, match="gradient_accumulation_steps to 2 or more") as given:
        trainer.train()
    assert sum("not measured" in str(one.message) for one in given) == 1
    assert trainer.state.global_step == len(model.seen) == 22
    assert not any(name.startswith("noise_scale") for name in trainer.state.log_history[0])
    with pytest.raises(MeasurementError, match="no noise scale yet: one batch per update"):
        callback.monitor.noise()


def test_an_update_of_one_micro_batch_is_left_out(tmp_path):
    model = Regression()
    trainer = trainer_of(tmp_path, model, rows=[{"x": x, "labels": y} for x, y in data(10)])
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    updates = updates_of(model)
    assert [len(parts) for _, parts in updates] == [4, 1] * 2
    assert callback.monitor.num_updates == 2
    assert_same(callback.monitor.noise(), replayed(updates))
    assert math.isfinite(callback.monitor.noise().gradient_variance.stderr)


def test_what_an_update_left_behind_is_not_measured(tmp_path):
    """A dataset of unknown length: the Trainer leaves an epoch's last gradients for the next."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (
                {"x": x, "labels": y} for x, y in data(20)
            )  # ten micro-batches: 4, 4 and 2 more

    model = Regression()
    trainer = trainer_of(tmp_path, model, rows=Stream(), max_steps=4)
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    clean = [update for update in updates_of(model) if len(update[1]) == 4]
    assert callback.monitor.num_updates == 3
    assert_same(callback.monitor.noise(), replayed([*clean[:2], clean[-1]]))


def test_a_ragged_last_batch_does_not_end_a_training(tmp_path):
    """Six micro-batches, the last of one example: that and the four before it are worth 3.2."""
    trainer = trainer_of(
        tmp_path,
        Regression(),
        rows=[{"x": x, "labels": y} for x, y in data(21)],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
    )
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
    assert (callback.monitor.num_updates, callback.monitor.num_skipped) == (2, 1)


def test_a_training_that_was_interrupted_leaves_no_hooks_behind(tmp_path):
    class Interrupting(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **others):
            if state.global_step == 1:
                raise KeyboardInterrupt

    model = Regression()
    trainer = trainer_of(tmp_path, model)
    callback = NoiseScaleCallback().add_to(trainer)
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
