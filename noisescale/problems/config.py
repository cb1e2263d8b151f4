"""Which problem a run solves, as plain data."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from noisescale.errors import SettingError, check_choice, check_count, check_file, is_real
from noisescale.statistics.display import Settings

DatasetName = Literal["mnist", "fashion-mnist", "digits", "shakespeare", "markov", "text"]
Amp = Literal["bf16"]  # automatic mixed precision: of a model's matrix products
PixelScale = Literal["unit", "raw"]
ModelName = Literal["mlp", "cnn", "gpt"]
Norm = Literal["none", "layer", "batch", "ghost"]
LossName = Literal["cross_entropy", "mse"]
TEXTS: tuple[DatasetName, ...] = ("shakespeare", "markov", "text")  # the others are images
# The fields that one kind of data takes and the other does not
OF_IMAGES = ("pixel_scale", "norm", "ghost_size", "loss", "label_noise", "classes", "imbalance")
OF_TEXTS = ("heads", "context", "tied", "text", "text_sha256")
# Stored where they are set alone: there were runs and studies before them
STORED_IF_SET = ("label_noise", "classes", "imbalance")
MOST_CLASSES = 10  # of every data set of images
MOST_IMBALANCE = 1000  # which leaves six images of the last class of 60,000, and no class none
CONTEXT = 64  # characters of a sequence, unless the context is given
DEEPEST = 10_000  # layers, which take a second to make; far beyond any that can be trained


@dataclass(frozen=True, repr=False)
class Config(Settings):
    """Reading and writing shared by the configurations."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are stored in JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def stored_defaults(cls) -> dict[str, Any]:
        """The default of each stored field, `dataclasses.MISSING` where it has none."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration stored in `values`; fields it lacks take their defaults.

        Raises:
            SettingError: a field this version does not know, or a value that is not allowed.
        """
        if unknown := sorted(set(values) - set(cls.stored_defaults())):
            raise SettingError(
                f"{cls.__name__} has no field {', '.join(unknown)}: "
                "was it written by a newer noisescale?"
            )
        return cls.from_known(values)

    @classmethod
    def from_known(cls, values: dict[str, Any]) -> Self:
        """The configuration from stored fields whose names have been checked."""
        return cls(**values)

    def changed(self) -> dict[str, Any]:
        """The stored fields that differ from their defaults."""
        defaults = self.stored_defaults()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}


@dataclass(frozen=True, kw_only=True, repr=False)
class ProblemConfig(Config):
    """Which data, which model and which loss.

    Attributes:
        dataset: "mnist", "fashion-mnist" or "digits", which are images; "shakespeare" (tiny
            Shakespeare), "markov" (made here, of known entropy) or "text" (a file of one's own),
            whose examples are sequences of characters and whose targets the next ones.
        pixel_scale: "unit" divides the pixels by their largest value before standardising, "raw"
            does not, as in the three-case study, whose inputs were (x − 0.1307)/0.3081 with x in
            0…255.
        num_train: train on the first so many of one fixed shuffle of the training examples, the
            same for every seed, so that a smaller subset lies in a larger one; None: on all.
        label_noise: p, the share of the training labels that are replaced by another class, drawn
            evenly from the others: round(p·N) of them, the same for every seed, and the labels
            wrong at one p are wrong, in the same way, at every larger p. Validation and test labels
            are left as they are.
        classes: k: images of the first k classes alone, in every split, and k outputs of the
            model; num_train counts among these. None: all.
        imbalance: ρ, 1 or more, of a mixture of the classes: of class c = 0, …, k − 1 the share
            ρ^(−c/(k − 1)) of the training images is kept, so that of equal classes the first has ρ
            times as many as the last (Cui et al. 2019, arXiv 1901.05555). The same images for every
            seed, and those kept at one ρ are kept at every smaller one; num_train counts among
            them. Validation and test are left as they are.
        model: "mlp" or "cnn", of images; "gpt", of texts.
        width: hidden units of the MLP, channels of the CNN's first block or the GPT's embeddings;
            None: the model's own (1024, 32, 64).
        depth: hidden layers of the MLP, or blocks of the CNN or the GPT; None: the model's own
            (2, 2, 4).
        norm: the normalisation before each activation of an MLP or a CNN: "none", "layer", "batch",
            or "ghost": batch norm over parts of the batch. The GPT has a layer norm before each
            branch.
        ghost_size: examples in each of those parts; None: the norm is not "ghost".
        loss: "cross_entropy", in nats, of a text the mean over a sequence's characters; or, of
            images, "mse", ½ Σ_c (output_c − target_c)² with the class as a one-hot target.
        heads: of the GPT's attention; None: 4.
        context: characters of a sequence; None: 64.
        tied: whether the GPT's last layer shares the embedding of the characters.
        text: the file of "text", in UTF-8, or in any bytes, which are then the characters.
        text_sha256: of that file's content, read where it is not given, so that a run is known by
            what it was trained on.

    Raises:
        SettingError: for a value out of its range, or settings that exclude each other.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem
        >>> config = ProblemConfig(dataset="digits", width=16)
        >>> config
        ProblemConfig(dataset='digits', model='mlp', width=16)
        >>> build_problem(config).train.num_examples
        1297
    """

    always_shown = ("dataset", "model")

    dataset: DatasetName = "mnist"
    pixel_scale: PixelScale = "unit"
    num_train: int | None = None
    label_noise: float = 0.0
    classes: int | None = None
    imbalance: float = 1.0
    model: ModelName = "mlp"
    width: int | None = None
    depth: int | None = None
    norm: Norm = "none"
    ghost_size: int | None = None
    loss: LossName = "cross_entropy"
    heads: int | None = None
    context: int | None = None
    tied: bool = False
    text: str | None = None
    text_sha256: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("dataset", self.dataset, get_args(DatasetName))
        check_choice("pixel scale", self.pixel_scale, get_args(PixelScale))
        check_choice("model", self.model, get_args(ModelName))
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("loss", self.loss, get_args(LossName))
        for name in ("num_train", "width", "depth", "heads", "context"):
            if getattr(self, name) is not None:
                check_count(name.replace("_", " "), getattr(self, name))
        if self.depth is not None and self.depth > DEEPEST:
            raise SettingError(f"depth {self.depth}: give {DEEPEST:,} layers at most")
        self._check_kind()
        self._check_labels()
        self._take_text()

        if self.norm != "ghost" and self.ghost_size is not None:
            raise SettingError(
                f"ghost size {self.ghost_size} with norm {self.norm}: it goes with norm ghost; "
                "give that, or leave it out"
            )
        if self.norm == "ghost":
            if self.ghost_size is None:
                raise SettingError("norm ghost without a ghost size: give 2 or more examples")
            check_count("ghost size", self.ghost_size)
            if self.ghost_size == 1:
                raise SettingError("ghost size 1: one example has no variance; give 2 or more")

    @property
    def couples_examples(self) -> bool:
        """Whether the model normalises over a batch, or over parts of it."""
        return self.norm in ("batch", "ghost")

    @property
    def is_text(self) -> bool:
        """Whether the examples are sequences of characters, and not images."""
        return self.dataset in TEXTS

    @property
    def units_per_example(self) -> float | None:
        """The characters of a sequence; None of images."""
        return float(self.context or CONTEXT) if self.is_text else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are stored: of images those alone that there were before texts.

        Of those that came later, only what differs from the default. So the records and the names
        of runs and studies made then are those of runs made now.
        """
        left_out = () if self.is_text else OF_TEXTS
        defaults = self.stored_defaults()
        return {
            name: value
            for name, value in super().to_dict().items()
            if name not in left_out and (name not in STORED_IF_SET or value != defaults[name])
        }

    def _check_kind(self) -> None:
        """SettingError for a model of images on a text, the reverse, or settings of the other."""
        if self.is_text != (self.model == "gpt"):
            raise SettingError(
                f"model {self.model} on dataset {self.dataset}: give model gpt with a text "
                f"({', '.join(TEXTS)}), mlp or cnn with images"
            )
        for name in OF_IMAGES if self.is_text else OF_TEXTS:
            if getattr(self, name) != self.stored_defaults()[name]:
                raise SettingError(
                    f"{name.replace('_', ' ')} {getattr(self, name)!r} with model {self.model}: "
                    f"leave it out, it is for {'images' if self.is_text else 'texts'}"
                )

    def _check_labels(self) -> None:
        """SettingError for a share of wrong labels, or classes, that cannot be."""
        share = self.label_noise
        if not is_real(share) or not 0 <= share <= 1:
            raise SettingError(
                f"label noise {share!r}: give a share of the training labels, from 0 to 1"
            )
        object.__setattr__(self, "label_noise", float(share))  # 1 and 1.0 are one key
        if self.classes is not None:
            check_count("classes", self.classes, most=MOST_CLASSES)
            if self.classes == 1:
                raise SettingError("classes 1: one class leaves nothing to learn; give 2 or more")
        ratio = self.imbalance
        if not (is_real(ratio) and 1 <= ratio <= MOST_IMBALANCE):
            raise SettingError(
                f"imbalance {ratio!r}: give the images of the first class for one of the last, a "
                f"number from 1 to {MOST_IMBALANCE:,}"
            )
        object.__setattr__(self, "imbalance", float(ratio))

    def _take_text(self) -> None:
        """Notes what the file of a text holds; SettingError where it cannot be read."""
        given: Any = self.text
        if isinstance(given, Path):
            object.__setattr__(self, "text", str(given))
        elif not isinstance(given, str | None):
            raise SettingError(f"text {given!r}: give the name of a file")
        if (self.text is not None) != (self.dataset == "text"):
            raise SettingError(
                f"dataset {self.dataset} with text {self.text!r}: "
                "give a file as text with dataset text, and with no other"
            )
        if self.text is not None and self.text_sha256 is None:
            if not self.text:
                raise SettingError("text '': give the name of a file")
            path = Path(self.text)
            check_file(path, SettingError)
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except (OSError, ValueError) as error:
                raise SettingError(
                    f"text {self.text} cannot be read: {getattr(error, 'strerror', None) or error}"
                ) from error
            object.__setattr__(self, "text_sha256", digest)


@dataclass(frozen=True, kw_only=True, repr=False)
class FactoryConfig(Config):
    """A problem of the user's own.

    factory: "module:function" or "path/to/file.py:function", see
        `noisescale.problems.factory.load_problem`.
    source: digest of the file it is defined in, so that runs of an older version are not taken for
        its own.
    """

    factory: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ObjectConfig(Config):
    """A problem that was given as an object in Python: what can be told of it without its code.

    model: the class of its model. loss: the name of its loss. digest: of the initial parameters and
        buffers and of the examples (of a Dataset's: how many there are, and the first few). What
        the code of the model, the loss and the weights does is no part of it.
    """

    model: str
    loss: str
    digest: str


AnyConfig = ProblemConfig | FactoryConfig | ObjectConfig


def parse_problem(values: dict[str, Any]) -> AnyConfig:
    """The configuration stored in `values`, of whichever kind it is.

    Args:
        values: as `to_dict` gives them; of a factory they name one, of an object they have a
            digest.

    Raises:
        SettingError: a field this version does not know, or a value that is not allowed.
    """
    kind: type[AnyConfig] = ProblemConfig
    if "factory" in values:
        kind = FactoryConfig
    elif "digest" in values:
        kind = ObjectConfig
    return kind.from_dict(values)


def resolve_device(name: str) -> str:
    """The device that `name` means here; SettingError for none, or for a GPU that is not there."""
    import torch  # not needed to read a configuration

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError):
        raise SettingError(f"device {name!r}: give cpu, cuda, cuda:1 or auto") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device {name}: torch sees no GPU here; give cpu, or auto to use one where there is"
        )
    return name
