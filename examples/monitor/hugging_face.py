"""The noise scale in a Hugging Face Trainer; torchrun --nproc-per-node 2 takes two processes."""

from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from noisescale.integrations.transformers import NoiseScaleCallback

torch.manual_seed(0)
sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
tokens = torch.arange(512)[:, None] + torch.arange(12) * (1 + torch.arange(512) % 3)[:, None]
texts = [{"input_ids": row, "labels": row} for row in tokens % 50]
with TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=texts)
    callback = NoiseScaleCallback().add_to(trainer)
    trainer.train()
if trainer.is_world_process_zero():
    print(callback.monitor.noise())
