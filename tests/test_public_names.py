"""What a user meets of each public name: its signature, its example, one line of repr."""

import copy
import doctest
import inspect
import pickle
import pydoc
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import noisescale
from tests.helpers.problems import small_network
from tests.helpers.public_names import DOCUMENTED

NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
NEAR = 0.1  # of an example's numbers: another torch draws and rounds a little otherwise
LONGEST = 120  # columns of a one-line repr
MET_FIRST = {  # what a user meets first has an example
    *("AdaptiveConfig", "CriticalBatchConfig", "CriticalBatchFit", "Estimate", "Examples"),
    *("NoiseOptions", "NoiseScale", "NoiseScaleMonitor"),
    *("NormLayerMonitor", "Objective", "Problem", "ProblemConfig"),
    *("RunningNoise", "Sharpness", "SharpnessOptions", "SweepConfig", "TrainConfig"),
    *("batch_sharpness", "best_rate", "branch_critical_batch", "build_problem", "cnn", "evaluate"),
    *("fit_critical_batch", "fit_edge", "fit_learning_rate_laws", "ggn_matvec"),
    *("gradient_moments", "hessian_matvec", "keskar_sharpness", "load_checkpoint", "load_splits"),
    *("load_weights", "measure_noise", "measure_sharpness", "measure_stability", "mlp"),
    *("noise_scale", "noisy_quadratic", "recommend", "run_training", "spectral_density"),
    *("spectral_moments", "steps_to_goal", "top_eigenpairs", "train", "two_batch"),
}


class Near(doctest.OutputChecker):
    """The same text, with numbers that are nearly the same."""

    def check_output(self, want, got, optionflags):
        numbers = [
            np.array([float(number.replace(",", "")) for number in NUMBER.findall(text)])
            for text in (want, got)
        ]
        texts = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (want, got)]
        return (
            texts[0] == texts[1]
            and len(numbers[0]) == len(numbers[1])
            and np.allclose(*numbers, rtol=NEAR, atol=1e-9)
        )


def examples():
    """Each public name whose docstring has an example."""
    finder = doctest.DocTestFinder(recurse=False)
    for name in DOCUMENTED:
        value = getattr(noisescale, name)
        for test in finder.find(value, name, module=False, globs={}):
            if test.examples:
                yield name, test


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_comes_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(checker=Near(), verbose=False)
    said = []
    runner.run(EXAMPLES[name], out=said.append)
    assert not runner.failures, "".join(said)


def test_what_is_met_first_has_an_example():
    assert set(EXAMPLES) >= MET_FIRST
    for test in EXAMPLES.values():
        assert test.examples[0].source.startswith(("import ", "from "))
        assert len(test.examples) <= 9


def test_the_checker_sees_another_number_and_another_word():
    check = Near().check_output
    assert check("B 102 ± 12 (83–132)\n", "B   101 ± 12 (83–131)\n", 0)
    assert not check("B 102 ± 12 (83–132)\n", "B 132 ± 12 (83–132)\n", 0)
    assert not check("B 102 ± 12\n", "C 102 ± 12\n", 0)
    assert not check("True\n", "False\n", 0)


def callables():
    """Each public function, class and method, and what a default of it could be."""
    for name in DOCUMENTED:
        value = getattr(noisescale, name)
        if value is not noisescale.NoisescaleError:  # an exception's, which takes anything
            yield name, value
        if inspect.isclass(value):
            for method_name in dir(value):
                method = inspect.getattr_static(value, method_name)
                method = getattr(method, "__func__", method)
                if not method_name.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{method_name}", method


def test_no_default_is_a_lambda_or_an_address():
    seen = 0
    for name, value in callables():
        for parameter in inspect.signature(value).parameters.values():
            assert " at 0x" not in repr(parameter.default), (name, parameter.name)
            assert "<lambda>" not in repr(parameter.default), (name, parameter.name)
            seen += 1
    assert seen > 300  # it has walked them all


def test_help_begins_with_what_is_for_what():
    text = pydoc.plain(pydoc.render_doc(noisescale))
    guide = text[text.index("DESCRIPTION") : text.index("PACKAGE CONTENTS")]
    assert len(guide.splitlines()) < 120
    assert max(map(len, guide.splitlines())) <= 80
    for name in set(noisescale.__all__) - {"__version__"}:
        assert re.search(rf"\b{name}\b", guide), name


def objects(tmp_path):
    """What holds a model, tensors or arrays, and would fill a screen."""
    problem = small_network()
    hessian = noisescale.hessian_matvec(problem)
    config = noisescale.TrainConfig(batch_size=4, epochs=1)
    yield problem
    yield problem.train
    yield noisescale.ProblemConfig(width=64)
    yield config
    yield noisescale.gradient_moments(problem)
    yield noisescale.measure_noise(problem, hessian=True, num_probes=4).curvature
    yield hessian
    yield hessian.objective
    yield noisescale.top_eigenpairs(hessian, k=6)
    yield noisescale.spectral_density(hessian, num_steps=5)
    yield noisescale.keskar_sharpness(noisescale.Objective(problem, dtype=torch.float64))
    yield noisescale.NoiseScaleMonitor(problem.model)
    yield noisescale.NormLayerMonitor(torch.nn.LayerNorm(3))
    yield noisescale.RunningNoise(memory=1e6)
    yield noisescale.AdaptiveBatchSize(config, problem.model, num_examples=12)
    yield noisescale.evaluate(problem.model, problem.loss, problem.train)
    yield noisescale.Evaluation(loss=0.5, confusion=None)
    yield from noisescale.train(problem, config)
    yield noisescale.Outer(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 5), torch.Size((4, 5)))


def test_what_holds_much_says_what_it_is_in_a_line(tmp_path):
    for thing in objects(tmp_path):
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}("), text
        assert "\n" not in text
        assert len(text) <= LONGEST, text
        assert " at 0x" not in text
        assert "tensor(" not in text
        assert "array(" not in text


def test_a_configuration_is_made_anew_from_its_repr():
    names = {name: getattr(noisescale, name) for name in DOCUMENTED}
    for config in (
        noisescale.ProblemConfig(),
        noisescale.ProblemConfig(dataset="digits", width=64, norm="layer"),
        noisescale.TrainConfig(batch_size="full", momentum=0.9, seed=3),
        noisescale.NoiseOptions(hessian=True, dtype=None),
        noisescale.SharpnessOptions(top=3),
        noisescale.RunOptions(),
        noisescale.SweepOptions(predict=False),
        noisescale.SweepConfig(
            problem=noisescale.ProblemConfig(), horizon=noisescale.Horizon(steps=50)
        ),
        noisescale.CriticalBatchConfig(problem=noisescale.ProblemConfig(), goals=(1.0, 0.5)),
        noisescale.TrainConfig(adaptive=noisescale.AdaptiveConfig(), batch_size="adaptive"),
    ):
        assert eval(repr(config), names) == config
        for twin in (copy.copy(config), pickle.loads(pickle.dumps(config))):
            assert twin == config
            assert hash(twin) == hash(config)


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (torch.utils.data.TensorDataset(torch.ones(5, 2)), "train 5 of TensorDataset"),
        (
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(7, 2))),
            "train 7 of TensorDataset",
        ),
        ([1, 2, 3], "train 3 of list"),
        (object(), "train object"),
    ],
)
def test_a_problem_reads_nothing_to_say_what_it_is(split, told):
    problem = noisescale.Problem(model=torch.nn.LazyLinear(2), loss=torch.nn.MSELoss(), train=split)
    assert repr(problem) == f"Problem(LazyLinear of lazy parameters, loss MSELoss, {told})"


def test_a_path_may_be_a_string():
    annotated = {
        f"{name}({parameter.name})": str(parameter.annotation)
        for name in DOCUMENTED
        if callable(value := getattr(noisescale, name))
        and not (isinstance(value, type) and issubclass(value, Exception))
        for parameter in inspect.signature(value).parameters.values()
        if "Path" in str(parameter.annotation)
    }
    assert len(annotated) > 20
    assert not [where for where, text in annotated.items() if "str" not in text]


def test_strings_do_for_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = noisescale.ProblemConfig(dataset="digits", width=4, num_train=50)
    training = noisescale.TrainConfig(batch_size=25, max_steps=2)
    options = noisescale.RunOptions(data_dir="data", pictures=False)
    noisescale.run_training(problem, training, "run", options)
    for read in (noisescale.read_metrics, noisescale.read_losses):
        assert len(read("run"))
    noisescale.save_checkpoint(noisescale.load_checkpoint("run"), "copy.pt")
    assert noisescale.file_digest("copy.pt") == noisescale.file_digest(tmp_path / "copy.pt")
    branches = noisescale.BranchConfig(
        problem=problem,
        training=training,
        start=noisescale.file_digest("copy.pt"),
        examples=50,
        batch_sizes=(2, 5, 10),
        num_seeds=1,
    )
    options = noisescale.StudyOptions(data_dir="data", pictures=False)
    with ThreadPoolExecutor(1) as executor:
        noisescale.run_branches(branches, "copy.pt", "branches", executor=executor, options=options)
        sweep = noisescale.SweepConfig(
            problem=problem,
            batch_sizes=(25,),
            lr_min=0.1,
            lr_max=0.2,
            num_lr=2,
            num_seeds=1,
            horizon=noisescale.Horizon(steps=2),
        )
        noisescale.run_sweep(sweep, "sweep", executor=executor, options=options)
    assert len(noisescale.read_cells("sweep")) == 2
    assert len(noisescale.read_boundary("sweep")) == 1
