"""Tiny models of every family with random weights, made by transformers, and what it makes of them.

Facts about transformers that the oracle relies on:
- Attention is eager, so that soft caps and sinks count, and masks are explicit.
- Falcon with ALiBi is the exception: its eager path adds the bias twice, its SDPA path once, as the model was
  trained. Both round it to bfloat16, which is exact for the slopes and positions of up to 8 heads and 256
  tokens.
- Experts are computed one after another: its grouped product refuses odd sizes.
- Each prompt has a model of its own: dynamic rotary embeddings remember the longest sequence so far.
- A sliding window of n lets a query see n positions, its own included.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from family_cases import SIZES, Case

NUM_TOKENS = 48


@dataclass(frozen=True)
class Oracle:
    """A checkpoint and what transformers makes of it, in float32."""

    folder: Path
    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Tensor, ...]  # of every position of the prompt


@torch.inference_mode()
def make_oracle(case: Case, folder: Path) -> Oracle:
    model = make_model(case)
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    vocab_size = model.config.get_text_config().vocab_size
    prompts = [torch.randint(vocab_size, (1, length), generator=generator) for length in case.prompt_lengths]
    tokens, logits = [], []
    for prompt in prompts:
        fresh = copy.deepcopy(model)
        logits.append(fresh(prompt, attention_mask=torch.ones_like(prompt)).logits[0])
        ids = fresh.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens.append(tuple(ids[0, prompt.shape[1] :].tolist()))
    assert len(set().union(*tokens)) > 9, f"tokens that repeat show little; choose another seed: {tokens}"
    ids = tuple(tuple(prompt[0].tolist()) for prompt in prompts)
    return Oracle(folder=folder, prompts=ids, tokens=tuple(tokens), logits=tuple(logits))


def make_model(case: Case) -> PreTrainedModel:
    """Weights large enough that attention is far from uniform, norms and biases far from trivial."""
    config = AutoConfig.for_model(
        case.model_type, **copy.deepcopy(SIZES | case.config), eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(case.seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=case.attention, experts_implementation="eager"
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=1.5 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.2)
            if weight.dim() == 1 and name.endswith(".weight") and "gemma" not in case.model_type:
                weight.add_(1)
        if model.config.tie_word_embeddings:  # or the likeliest token would be the last one again
            model.get_input_embeddings().weight.mul_(0.2)
    return model.float().eval()
