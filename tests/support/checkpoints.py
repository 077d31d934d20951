"""Small random Llama checkpoints, and transformers as the oracle of what they generate."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

CONTEXT = 256
VOCAB = 301
GQA = {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": False}
MHA_TIED_BIASED = {
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
}


@dataclass(frozen=True)
class Oracle:
    """A model folder and the same weights in transformers, float32 on the CPU."""

    folder: Path
    model: PreTrainedModel

    @torch.inference_mode()
    def greedy(self, prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
        """The likeliest continuation; nothing ends it early."""
        ids = torch.tensor([prompt])
        self.model.generation_config.eos_token_id = None
        # Without a mask `generate` infers one, and takes ids that equal the padding's for padding.
        whole = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
        )
        return tuple(whole[0, len(prompt) :].tolist())

    @torch.inference_mode()
    def logprobs(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> Tensor:
        """Natural logarithms [len(output), vocab] of the probabilities from which `output` was chosen."""
        logits = self.model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)


def load_oracle(folder: Path) -> Oracle:
    return Oracle(folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def save_llama(folder: Path, **shape: Any) -> Oracle:
    """A random Llama saved in `folder`, its weights so wide that greedy choices are clear."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        intermediate_size=90,
        num_hidden_layers=3,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
        **{"hidden_size": 56, **shape},
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms and biases start as ones and zeros
            if parameter.dim() == 1:
                parameter.normal_(mean=float(name.endswith("norm.weight")), std=0.2)
    model.save_pretrained(folder)
    return Oracle(folder, model)


def random_prompts(lengths: list[int], *, seed: int = 0, vocab_size: int = VOCAB) -> list[tuple[int, ...]]:
    """Prompts of `lengths`, from every id of the vocabulary."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(vocab_size) for _ in range(length)) for length in lengths]
