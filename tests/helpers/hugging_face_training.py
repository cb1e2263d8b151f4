"""Trainings by Hugging Face in several processes, and what each update's micro-batches were.

`torchrun ... -m tests.helpers.hugging_face_training FOLDER ddp` (or `fsdp2`) trains in each of
several ways and writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from noisescale.integrations.transformers import NoiseScaleCallback
from tests.helpers.accelerate_on_cpu import begin_anew, shard_on_cpu

WORDS, LENGTH, NUM_TEXTS = 17, 7, 24
BATCH, STEPS = 2, 2  # texts in a micro-batch, micro-batches of a process in an update
IGNORED = -100
SMOOTHING = 0.1
CASES = (
    "tokens",
    "tied",
    "own counts",
    "smoothed",
    "own loss",
    "own step",
    "means",
    "one batch",
    "uncounted",
)


class Means(nn.Module):
    """Takes no count of tokens, and returns a mean over the examples of its micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.words(input_ids).mean(1))
        return {"loss": F.cross_entropy(self.out(hidden), labels[:, 0] % 3)}


def model_of(case: str) -> nn.Module:
    """The same in every process."""
    torch.manual_seed(1)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if case == "means":
        return Means()
    if case == "tied":
        sizes = {"n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 2}
        silent = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = transformers.GPT2Config(vocab_size=WORDS, **sizes, **silent, **ends)
        return transformers.GPT2LMHeadModel(config)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            **ends,
        )
    )


def texts(case: str) -> list[dict[str, Tensor]]:
    """Of different lengths, filled up with 0, which is no word of theirs.

    case: of "uncounted" many are of one word, which none before it predicts.
    """
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(1, WORDS, (NUM_TEXTS, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (NUM_TEXTS, 1), generator=generator)
    if case == "uncounted":
        lengths[torch.rand(NUM_TEXTS, generator=generator) < 0.5] = 1
    words *= torch.arange(LENGTH) < lengths
    return [{"input_ids": row, "labels": labels_of(row)} for row in words]


def steps_of(case: str) -> int:
    """Micro-batches of a process in an update."""
    return 1 if case == "one batch" else STEPS


def labels_of(words: Tensor) -> Tensor:
    return torch.where(words != 0, words, IGNORED)


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """For a Trainer's compute_loss_func."""
    losses = F.cross_entropy(
        outputs.logits[:, :-1].mT, labels[:, 1:], ignore_index=IGNORED, reduction="sum"
    )
    return losses / num_items_in_batch


class OwnStep(transformers.Trainer):
    """Does what the Trainer does by a step of its own, which calls no other's."""

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), False, num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


def train(folder: Path, case: str, *, sharded: bool) -> dict[str, Any]:
    """The averages of the callback, and of each micro-batch the texts, in order."""
    begin_anew()
    settings: dict[str, Any] = {}
    if sharded:
        settings = {"fsdp": True, "fsdp_config": {"version": 2}}
        if case == "means":
            settings["fsdp_config"] |= {"auto_wrap_policy": "NO_WRAP"}
    if case == "smoothed":
        settings["label_smoothing_factor"] = SMOOTHING
    if case == "own counts":
        settings["average_tokens_across_devices"] = False
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=steps_of(case),
        max_grad_norm=0.1,
        num_train_epochs=1,
        learning_rate=0.0,  # so that every gradient can be had again
        logging_steps=1,
        save_strategy="no",
        **settings,
    )
    model, seen = model_of(case), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: (
            seen.append(kwargs["input_ids"].clone()) if torch.is_grad_enabled() else None
        ),
        with_kwargs=True,
    )
    build = OwnStep if case == "own step" else transformers.Trainer
    loss = {"compute_loss_func": summed_loss} if case == "own loss" else {}
    trainer = build(model=model, args=arguments, train_dataset=texts(case), **loss)
    callback = NoiseScaleCallback(memory=1e12).add_to(trainer)
    trainer.train()
    assert callback.monitor is not None
    return {
        "wrapped": type(trainer.model_wrapped).__name__,
        "scalars": callback.monitor.scalars(),
        "updates": (callback.monitor.num_updates, callback.monitor.num_skipped),
        "seen": seen,
    }


if __name__ == "__main__":
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    shard_on_cpu()
    found = {case: train(folder, case, sharded=strategy == "fsdp2") for case in CASES}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
