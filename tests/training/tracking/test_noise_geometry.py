"""Noise scales under Adam's own preconditioner along a run."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call

from experiments.coverage.new_task import simulated
from noisescale.errors import SettingError
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import NoiseOptions
from noisescale.plots.noise import noise_growth_figure
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.critical_batch.calibration import shipped
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.studies.critical_batch.goal_runs import noise_runs
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.tables import (
    NOISE,
    NOISE_COLUMNS,
    NOISE_LAYERS,
    PRECONDITIONED_COLUMNS,
    read_noise,
    read_noise_layers,
)
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking

PROBLEM = ProblemConfig(dataset="digits", width=16, num_train=60)
ADAM = TrainConfig(batch_size=20, optimizer="adam", learning_rate=0.01, max_steps=6)
SGD = TrainConfig(batch_size=20, learning_rate=0.1, max_steps=6)


def tracked(path, training=ADAM, **settings):
    noise = NoiseTracking(every=2, **settings)
    options = RunOptions(noise=noise, checkpoint_every=2, pictures=False)
    run_training(PROBLEM, training, path, options)
    return pd.DataFrame(read_noise(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of Adam that is tracked as it is by default, and by layer."""
    path = tmp_path_factory.mktemp("whole")
    tracked(path, per_layer=True)
    return path


def preconditioner_by_hand(checkpoint):
    """1/(√(v/(1 − β₂ᵗ)) + ε), by parameter."""
    states = checkpoint.optimizer["state"].values()
    return {
        name: 1 / ((state["exp_avg_sq"].double() / (1 - 0.999 ** int(state["step"]))).sqrt() + 1e-8)
        for name, state in zip(checkpoint.params, states, strict=True)
    }


def gradients_by_hand(problem, params):
    """The gradient of each training example, a backward pass each: (N, P), float64."""
    leaves = {name: value.double().requires_grad_() for name, value in params.items()}
    rows = []
    for index in range(problem.train.num_examples):
        example = problem.train.part(slice(index, index + 1))
        outputs = functional_call(problem.model.double(), leaves, (example.inputs.double(),))
        loss = problem.loss(outputs, example.targets).sum()
        parts = torch.autograd.grad(loss, list(leaves.values()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).numpy()


def test_rows_are_of_the_optimizer_at_their_step(whole):
    rows = pd.DataFrame(read_noise(whole))
    assert rows["step"].tolist() == [0, 2, 4, 6]
    checkpoint = load_checkpoint(whole / "checkpoints" / "step-4.pt")
    preconditioner = preconditioner_by_hand(checkpoint)
    weight = np.concatenate([part.flatten().numpy() for part in preconditioner.values()])
    gradients = gradients_by_hand(build_problem(PROBLEM), checkpoint.params)  # (N, P)
    mean = gradients.mean(0)
    norm = float(weight @ mean**2)  # of all examples there are, so exact
    trace = float((weight * (gradients - mean) ** 2).sum(1).mean())
    row = rows.set_index("step").loc[4]
    assert row["preconditioned_squared_gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["preconditioned_gradient_variance"] == pytest.approx(trace, rel=1e-4)
    assert row["preconditioned_simple"] == pytest.approx(trace / norm, rel=1e-4)
    assert row["simple"] == pytest.approx(gradients.var(0).sum() / (mean @ mean), rel=1e-4)
    layers = pd.DataFrame(read_noise_layers(whole))
    of_step = layers[layers["step"] == 4]
    assert of_step["preconditioned_gradient_variance"].sum() == pytest.approx(trace, rel=1e-4)


def test_before_its_first_step_the_optimizer_has_no_geometry(whole):
    first = read_noise(whole)[0]
    assert first["simple"] > 0
    assert math.isnan(first["preconditioned_gradient_variance"])
    assert first["preconditioned_reason"] == "adam has made no step"
    assert first["reason"] == ""


def test_with_the_hessian_both_noise_scales_are_those_of_measure_noise(tmp_path):
    rows = tracked(tmp_path, hessian=True, num_probes=2)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-4.pt")
    problem = build_problem(PROBLEM)
    problem.model.eval()
    found = measure_noise(
        problem,
        checkpoint.params,
        NoiseOptions(hessian=True, num_probes=2),
        preconditioner=preconditioner_by_hand(checkpoint),
    )
    row = rows.set_index("step").loc[4]
    under = found.preconditioned.curvature
    for name, estimate in (
        ("hessian_covariance_trace", found.curvature.covariance_trace),
        ("preconditioned_hessian_covariance_trace", under.covariance_trace),
        ("preconditioned_gradient_curvature", under.gradient_curvature),
    ):
        assert row[name] == pytest.approx(estimate.value, rel=1e-3), name


def test_the_optimizer_alone_leaves_the_plain_columns_empty_and_saves_their_products(
    tmp_path, monkeypatch
):
    probed = []
    probe = measure_noise.__globals__["probe_curvature"]
    monkeypatch.setitem(
        measure_noise.__globals__,
        "probe_curvature",
        lambda *args, **named: probed.append(named["metric"]) or probe(*args, **named),
    )
    rows = tracked(tmp_path, geometry="optimizer", hessian=True, num_probes=2, per_layer=True)
    later = rows[rows["step"] > 0]
    assert later["preconditioned_simple"].notna().all()
    assert later["preconditioned_hessian_covariance_trace"].notna().all()
    assert rows[["simple", "gradient_variance", "hessian_covariance_trace"]].isna().all(axis=None)
    assert rows["loss"].notna().all()
    assert len(probed) == 3
    assert all(metric is not None for metric in probed)
    assert pd.DataFrame(read_noise_layers(tmp_path))["gradient_variance"].isna().all()


@pytest.mark.parametrize("geometry", ["optimizer", "both"])
def test_sgd_is_refused_before_there_is_a_folder(geometry, tmp_path):
    with pytest.raises(SettingError, match=f"noise geometry {geometry} with sgd.*leave"):
        tracked(tmp_path / "run", SGD, geometry=geometry)
    assert not (tmp_path / "run").exists()


def test_a_run_of_sgd_has_the_columns_that_it_always_had(tmp_path):
    tracked(tmp_path, SGD)
    assert list(pd.read_csv(tmp_path / NOISE).columns) == list(NOISE_COLUMNS)


def test_other_settings_are_refused():
    with pytest.raises(SettingError, match="choose one of plain, optimizer, both"):
        NoiseTracking(geometry="adam")
    problem = build_problem(PROBLEM)
    with pytest.raises(SettingError, match="geometry both without a preconditioner"):
        measure_noise(problem, geometry="both")


def test_a_resumed_run_leaves_the_same_tables_to_the_byte(whole, tmp_path, monkeypatch):
    measure = NoiseTracker.measure

    def killed(tracker):
        if tracker._training.step == 4:
            raise ZeroDivisionError
        return measure(tracker)

    with monkeypatch.context() as patch:
        patch.setattr(NoiseTracker, "measure", killed)
        with pytest.raises(ZeroDivisionError):
            tracked(tmp_path, per_layer=True)
    tracked(tmp_path, per_layer=True)
    timeless = [
        pd.read_csv(path / NOISE, dtype=str).drop(columns="seconds") for path in (whole, tmp_path)
    ]
    pd.testing.assert_frame_equal(*timeless)
    assert (whole / NOISE_LAYERS).read_bytes() == (tmp_path / NOISE_LAYERS).read_bytes()


@pytest.mark.parametrize(("geometry", "steps"), [(None, [0, 2, 4, 6]), ("both", [4, 6])])
def test_a_table_of_before_there_was_a_geometry_is_gone_on_with(
    geometry, steps, tmp_path, monkeypatch
):
    measure = NoiseTracker.measure

    def killed(tracker):
        if tracker._training.step == 4:
            raise ZeroDivisionError
        return measure(tracker)

    with monkeypatch.context() as patch:
        patch.setattr(NoiseTracker, "measure", killed)
        with pytest.raises(ZeroDivisionError):
            tracked(tmp_path, geometry="plain")
    old = pd.read_csv(tmp_path / NOISE)
    assert not set(PRECONDITIONED_COLUMNS) & set(old)
    rows = tracked(tmp_path, geometry=geometry)
    assert rows["step"].tolist() == steps
    assert rows["preconditioned_simple"].notna().tolist() == [step >= 4 for step in steps]


def test_second_moments_that_overflow_end_no_run(tmp_path):
    config = TrainConfig(batch_size=20, optimizer="adam", learning_rate=1e30, max_steps=6)
    rows = tracked(tmp_path, config)
    assert "not finite" in rows["reason"].iloc[-1]


def test_a_recommendation_of_the_geometry_of_the_optimizer(whole):
    rows = pd.DataFrame(read_noise(whole))
    found, plain = (recommend(rows, geometry=geometry) for geometry in ("optimizer", "plain"))
    assert (found.geometry, plain.geometry) == ("optimizer", "plain")
    assert found.start.value == rows["preconditioned_simple"].iloc[1]
    assert found.end.value == rows["preconditioned_simple"].iloc[-1]
    assert plain.end.value == rows["simple"].iloc[-1]
    # by hand: 1/B averaged over each of the two stretches of two steps after the first step
    inverse = 1 / rows["preconditioned_simple"].iloc[1:].to_numpy()
    sizes = 2 / (inverse[1:] + inverse[:-1])
    shares = 1 / (1 + sizes / 20)  # of a best step's progress, at 20 examples
    by_progress = (shares * sizes).sum() / shares.sum()
    assert found.by_progress.value == pytest.approx(by_progress)
    assert any("optimizer's geometry" in warning for warning in found.warnings)
    assert found.to_dict()["geometry"] == "optimizer"


def test_with_runs_of_adam_in_it_a_recommendation_is_of_the_plain_scale(
    whole, tmp_path, monkeypatch
):
    """Unless that alone was tracked; and a front's, whose B_crit is told as from plain ones."""
    table = simulated(np.random.default_rng(5))
    table.to_csv(tmp_path / "fronts.csv", index=False)
    monkeypatch.setattr(shipped, "FRONTS", tmp_path / "fronts.csv")
    rows = pd.DataFrame(read_noise(whole))
    assert recommend(rows).geometry == "plain"
    assert not any("geometry" in warning for warning in recommend(rows).warnings)
    alone = recommend(rows.assign(simple=np.nan))
    assert alone.geometry == "optimizer"
    assert any("optimizer's geometry" in warning for warning in alone.warnings)


def test_the_noise_beside_a_front_is_plain(whole):
    run = SimpleNamespace(steps=lambda goal: 1e9, noise=pd.DataFrame(read_noise(whole)))
    (course,) = noise_runs._courses([run], 0.5, "simple")
    assert course.geometry == "plain"


def test_the_picture_has_both_scales(whole):
    rows = pd.DataFrame(read_noise(whole))
    labels = [
        text.get_text() for text in noise_growth_figure(rows, title="run").legends[0].get_texts()
    ]
    assert labels == [r"$B_{\mathrm{simple}}$", r"$B^P_{\mathrm{simple}}$, of the optimizer"]
