import gc
import gzip
import hashlib
import itertools
import shutil
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets, transforms

from noisescale.errors import DataError, SettingError
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.data import mnist_files
from noisescale.problems.data.mnist_files import FILES, Source
from noisescale.problems.data.splits import load_splits, num_training_examples, resolve_dataset


def idx(values):
    """An array of bytes in the IDX format."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def tiny_files():
    """Four small files in MNIST's format: 20 training and 10 test images."""
    random = np.random.default_rng(0)
    contents = {}
    for name in FILES:
        count = 20 if name.startswith("train") else 10
        shape = (count, 28, 28) if "images" in name else (count,)
        contents[name] = idx(random.integers(0, 10, shape, dtype=np.uint8))
    return contents


def source_of(contents, mirrors, *, archives_only=False):
    archives = {name: gzip.compress(content, mtime=0) for name, content in contents.items()}
    dataset = type(
        "Tiny",
        (datasets.MNIST,),
        {
            "mirrors": mirrors,
            "resources": [
                (f"{name}.gz", hashlib.md5(archive).hexdigest())
                for name, archive in archives.items()
            ],
        },
    )
    raw = tuple(hashlib.sha256(content).hexdigest() for content in contents.values())
    published = tuple(hashlib.sha256(archive).hexdigest() for archive in archives.values())
    tiny = type("TinySource", (Source,), {"dataset": dataset})
    source = tiny("Tiny", archives=published) if archives_only else tiny("Tiny", raw=raw)
    return source, archives


@pytest.fixture
def silent_server():
    """Accepts connections and never says a word, as a filtered network may."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@pytest.mark.parametrize("archives_only", [False, True])
def test_absent_files_are_downloaded_whole_and_verified(
    tiny_files, server, tmp_path, archives_only
):
    address, folder = server
    source, archives = source_of(tiny_files, [address], archives_only=archives_only)
    for name, archive in archives.items():
        (folder / f"{name}.gz").write_bytes(archive)
    root = tmp_path / "data"
    mnist_files.fetch(source, root)
    mnist_files.verify(source, root)
    (images, classes), (test_images, _) = mnist_files.read(source, root)
    assert images.shape == (20, 28, 28)
    assert test_images.shape == (10, 28, 28)
    assert classes.numpy().astype(np.uint8).tobytes() == tiny_files[FILES[1]][8:]
    assert [entry.name for entry in root.iterdir()] == ["Tiny"]  # nothing temporary stays


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # torchvision keeps the refused answers open
def test_a_download_that_breaks_off_leaves_nothing_to_be_taken_for_data(
    tiny_files, server, tmp_path
):
    address, folder = server
    source, archives = source_of(tiny_files, [address])
    for name in FILES[:2]:  # the other two are not found
        (folder / f"{name}.gz").write_bytes(archives[name])
    with pytest.raises(DataError, match="could not be downloaded"):
        mnist_files.fetch(source, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    gc.collect()


@pytest.mark.parametrize("archives_only", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(tiny_files, tmp_path, name, archives_only):
    source, archives = source_of(tiny_files, [], archives_only=archives_only)
    raw = tmp_path / "Tiny" / "raw"
    raw.mkdir(parents=True)
    for file, content in tiny_files.items():
        (raw / file).write_bytes(content)
        (raw / f"{file}.gz").write_bytes(archives[file])
    mnist_files.verify(source, tmp_path)
    content = bytearray(tiny_files[name])
    content[-1] ^= 1
    (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged: its SHA-256"):
        mnist_files.verify(source, tmp_path)


def test_files_without_a_published_sum_are_said_to_be_unverified(tiny_files, tmp_path):
    source, _ = source_of(tiny_files, [], archives_only=True)
    raw = tmp_path / "Tiny" / "raw"
    raw.mkdir(parents=True)
    for name, content in tiny_files.items():
        (raw / name).write_bytes(content)
    with pytest.warns(UserWarning, match="is not verified"):
        mnist_files.verify(source, tmp_path)


def test_without_an_answer_auto_falls_back_on_digits_within_twenty_seconds(
    silent_server, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [silent_server, silent_server])
    monkeypatch.setattr(mnist_files, "REACHABLE_WITHIN", 1.0)
    started = time.monotonic()
    name, note = resolve_dataset("auto", tmp_path)
    assert time.monotonic() - started < 5
    assert name == "digits"
    assert "none of its servers answered" in note
    with pytest.raises(DataError, match="--dataset digits"):
        load_splits("mnist", data_dir=tmp_path)  # asked for by name, it is never substituted


def test_servers_are_given_less_than_the_twenty_seconds():
    assert mnist_files.REACHABLE_WITHIN < 20


@pytest.mark.processes
def test_what_reads_files_is_imported_when_files_are_read():
    """Each of these would take a worker longer to import than its problem takes to build."""
    code = (
        "import sys, noisescale.problems.build\n"
        "from noisescale.problems.data.splits import load_splits\n"
        "assert not {'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "load_splits('digits')\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_means_mnist_where_it_is_on_disk(mnist_dir):
    assert resolve_dataset("auto", mnist_dir) == ("mnist", None)


def test_digits_are_scikit_learns_split_in_three():
    splits = load_splits("digits")
    assert [part.num_examples for part in splits[:3]] == [1297, 250, 250]
    assert splits.train.inputs.shape == (1297, 1, 8, 8)
    everything = torch.cat([part.inputs for part in splits[:3]]).flatten(1)
    pixels = (everything * 0.3760 + 0.3053) * 16
    expected = load_digits().data
    assert sorted(map(tuple, pixels.round().int().tolist())) == sorted(
        map(tuple, expected.astype(int))
    )
    assert abs(splits.train.inputs.mean()) < 0.01
    assert abs(splits.train.inputs.std() - 1) < 0.01


@pytest.mark.parametrize("pixel_scale", ["unit", "raw"])
def test_mnist_is_what_torchvision_and_the_studys_split_give(mnist_dir, pixel_scale):
    splits = load_splits("mnist", pixel_scale=pixel_scale, data_dir=mnist_dir)
    train, test = (datasets.MNIST(str(mnist_dir), train=part) for part in (True, False))
    largest = 255 if pixel_scale == "raw" else 1  # ToTensor divides by 255
    recipe = transforms.Compose(
        [transforms.ToTensor(), lambda image: image * largest, transforms.Normalize(0.1307, 0.3081)]
    )
    for position in (0, 1, 31_415, 59_999):
        image, target = train[position]
        torch.testing.assert_close(
            splits.train.inputs[position], recipe(image), rtol=1e-5, atol=1e-4
        )
        assert splits.train.targets[position] == target
    validation, held_out = train_test_split(test.targets, test_size=0.2, random_state=42)
    assert torch.equal(splits.validation.targets, validation)
    assert torch.equal(splits.test.targets, held_out)
    assert [part.num_examples for part in splits[:3]] == [60_000, 8_000, 2_000]


def test_a_subset_is_random_and_always_the_same():
    whole, subset, again = (
        load_splits("digits", num_train=count).train for count in (None, 100, 100)
    )
    assert torch.equal(subset.inputs, again.inputs)
    assert not torch.equal(subset.inputs, whole.inputs[:100])
    assert torch.equal(load_splits("digits", num_train=40).train.inputs, subset.inputs[:40])
    assert len({image.numpy().tobytes() for image in subset.inputs}) == 100  # of no image twice
    with pytest.raises(SettingError, match="digits has 1297 training images"):
        load_splits("digits", num_train=1298)


def test_the_share_of_wrong_labels_is_exact_and_nested():
    right = load_splits("digits").train.targets
    shares = (0.0, 0.1, 0.2, 1.0)
    noisy = [load_splits("digits", label_noise=share) for share in shares]
    labels = [splits.train.targets for splits in noisy]
    assert [int((each != right).sum()) for each in labels] == [0, 130, 259, 1297]
    for fewer, more in itertools.pairwise(labels):
        wrong = fewer != right
        assert torch.equal(fewer[wrong], more[wrong])
    clean = load_splits("digits")
    assert all(torch.equal(splits.test.targets, clean.test.targets) for splits in noisy)
    # each of the nine others as often, by the chi-square of 9 shifts: 8 degrees of freedom
    counts = torch.bincount((labels[-1] - right) % 10, minlength=10)
    assert counts[0] == 0
    expected = len(right) / 9
    assert ((counts[1:] - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, 8)


def test_wrong_labels_are_not_what_a_seed_draws():
    """A permutation under a user's seed chooses what is measured on, and the order of training."""
    right, noisy = (load_splits("digits", label_noise=p).train.targets for p in (0.0, 0.1))
    wrong = (right != noisy).numpy()
    for seed in range(100):
        order = torch.randperm(1297, generator=torch.Generator().manual_seed(seed))
        # hypergeometric, of 130 among 1,297: beyond these ends once in 10⁶
        assert 1 <= wrong[order[:130]].sum() <= stats.hypergeom.isf(1e-6, 1297, 130, 130)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_classes_are_the_first_ones_in_every_split(name, mnist_dir):
    whole = load_splits(name, data_dir=mnist_dir)
    counts = torch.bincount(whole.train.targets).tolist()
    some = load_splits(name, classes=3, label_noise=0.5, data_dir=mnist_dir)
    assert some.num_classes == 3
    for part, all_of_it in zip(some[:3], whole[:3], strict=True):
        assert torch.equal(part.inputs, all_of_it.inputs[all_of_it.targets < 3])
        assert part.targets.unique().tolist() == [0, 1, 2]
    for number in (2, 3, 10):  # known without the data
        config = ProblemConfig(dataset=name, classes=number)
        assert num_training_examples(config) == sum(counts[:number])
    with pytest.raises(SettingError, match="images of the first 2 classes"):
        num_training_examples(ProblemConfig(dataset=name, classes=2, num_train=50_000))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_mixtures_have_classes_of_these_sizes_and_lie_in_one_another(name, mnist_dir):
    whole, some, few = (
        load_splits(name, imbalance=ratio, data_dir=mnist_dir) for ratio in (1.0, 10.0, 100.0)
    )
    equal = torch.bincount(whole.train.targets)
    for splits, ratio in ((some, 10.0), (few, 100.0)):
        counts = torch.bincount(splits.train.targets)
        expected = [max(round(int(equal[c]) * ratio ** (-c / 9)), 1) for c in range(10)]
        assert counts.tolist() == expected
        config = ProblemConfig(dataset=name, imbalance=ratio)
        assert num_training_examples(config) == sum(expected)  # known without the data
        assert torch.equal(splits.test.inputs, whole.test.inputs)
    rows = {image.numpy().tobytes() for image in some.train.inputs}
    assert all(image.numpy().tobytes() in rows for image in few.train.inputs)
    with pytest.raises(SettingError, match="images at an imbalance of 100"):
        load_splits(name, imbalance=100, num_train=50_000, data_dir=mnist_dir)


def test_of_few_classes_the_last_is_as_rare():
    some = load_splits("digits", classes=2, imbalance=10, label_noise=0.0)
    assert torch.bincount(some.train.targets).tolist() == [130, round(137 / 10)]


def test_a_model_has_an_output_for_each_class():
    problem = build_problem(ProblemConfig(dataset="digits", classes=4, num_train=20, width=4))
    assert problem.train.num_examples == 20
    assert problem.model(problem.train.inputs).shape == (20, 4)


def test_a_flipped_bit_in_mnist_is_noticed(mnist_dir, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(mnist_dir / "MNIST" / "raw" / name)
    (raw / FILES[3]).unlink()
    shutil.copyfile(mnist_dir / "MNIST" / "raw" / FILES[3], raw / FILES[3])
    content = bytearray((raw / FILES[3]).read_bytes())
    content[5000] ^= 1
    (raw / FILES[3]).write_bytes(content)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is damaged"):
        load_splits("mnist", data_dir=tmp_path)
