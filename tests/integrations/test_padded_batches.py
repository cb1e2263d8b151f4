"""Models of Hugging Face's library on padded batches with masks and ignored labels."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

transformers = pytest.importorskip("transformers")

from noisescale import Problem, gradient_moments, measure_noise, measure_sharpness
from tests.helpers.datasets import Items, scales, single_gradients

pytestmark = pytest.mark.peers

VOCABULARY, N = 19, 7
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2():
    config = transformers.GPT2Config(
        **SIZES, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        **SIZES,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config)


def bert():
    config = transformers.BertConfig(
        **SIZES,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return transformers.BertForMaskedLM(config)


def sequence(index):
    """A text of its own length, as a tokenizer gives it; labels of its first token are ignored."""
    length = 3 + index % 4
    tokens = [3 + (5 * index + 3 * place) % (VOCABULARY - 3) for place in range(length)]
    return {"input_ids": tokens, "labels": [-100, *tokens[1:]]}


def padded(items):
    """The texts filled up to the longest of these, with their mask."""
    fill = {"input_ids": 0, "labels": -100}
    rows = {
        name: [torch.tensor(item[name]) for item in items] + [torch.zeros(0, dtype=torch.long)]
        for name in fill
    }
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(rows[name][:-1], batch_first=True, padding_value=end)
        for name, end in fill.items()
    }
    return transformers.BatchEncoding(batch | {"attention_mask": (batch["input_ids"] != 0).long()})


def token_loss(output, labels):
    """The mean cross-entropy of each text's tokens that have a label, of the next token."""
    losses = F.cross_entropy(
        output.logits[:, :-1].mT, labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


@pytest.mark.parametrize("build", [gpt2, llama, bert])
def test_a_model_as_it_is_on_padded_batches(build):
    model = build().eval().double()
    data = DataLoader(Items(sequence, size=N), batch_size=4, collate_fn=padded)
    problem = Problem(model=model, loss=token_loss, train=data)

    def alone(index):
        text = sequence(index)
        ids, labels = torch.tensor([text["input_ids"]]), torch.tensor([text["labels"]])
        return token_loss(model(input_ids=ids), labels)[0]

    gradients = single_gradients(model, [alone(index) for index in range(N)])
    moments = gradient_moments(problem, chunk_size=3)
    norms = torch.as_tensor(moments.squared_norms.sum(1))
    torch.testing.assert_close(norms, gradients.square().sum(1), rtol=1e-8, atol=1e-10)
    squared_norm, variance = scales(gradients)
    noise = measure_noise(problem)
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=1e-8)
    assert noise.gradient_variance.value == pytest.approx(variance, rel=1e-8)


def test_sharpness_of_a_model_as_it_is():
    model = gpt2().eval().double()
    data = DataLoader(Items(sequence, size=N), collate_fn=padded)
    sharpness = measure_sharpness(Problem(model=model, loss=token_loss, train=data))
    texts = padded([sequence(index) for index in range(N)])
    params = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        output = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    loss = token_loss(output, texts["labels"]).mean()
    gradients = torch.autograd.grad(loss, params, create_graph=True)
    vectors = torch.split(
        sharpness.pairs["largest"].vectors[0], [param.numel() for param in params]
    )
    along = sum(
        (gradient.flatten() * vector).sum()
        for gradient, vector in zip(gradients, vectors, strict=True)
    )
    image = torch.cat([part.flatten() for part in torch.autograd.grad(along, params)])
    form = float(image @ torch.cat(vectors))
    assert sharpness.largest.value.value == pytest.approx(form, rel=1e-6)
