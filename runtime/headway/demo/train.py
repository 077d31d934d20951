"""Train the bundled model: a small Llama that writes plays, with its tokenizer and its model card.

    python runtime/headway/demo/train.py --corpus shakespeare.txt --out FOLDER --device cuda --compile

A megabyte of text is little, so most of what is here holds off overfitting: dropout on every branch, strong
weight decay, an average of the weights over time, and fresh splits of the words each time the text is read
(BPE-dropout, arXiv 1910.13267). The last tenth of the text is held out; the weights that predict it best are
kept. A share of the speeches is given to a speaker named HEADWAY and closed with the end-of-text token, so
that the model answers a chat, laid out as a play, and then stops by itself.

Not part of the wheel. Needs torch, transformers and tokenizers.
"""

import argparse
import json
import math
import platform
import random
import re
import sys
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy, dropout
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"
SPEAKER = "HEADWAY"
CONTEXT = 1024
VOCAB_SIZE = 2000
IGNORED = -100  # a target that adds nothing to the loss
LINE = "KING:\nTo be, or not to be: that is the question:\n"

# A dialogue as a play: the role in capitals, a colon, what is said; the answer is HEADWAY's.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}HEADWAY:\n{{ message['content'] | trim }}<|endoftext|>\n\n"
    "{% else %}{{ message['role'] | upper }}:\n{{ message['content'] | trim }}\n\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}HEADWAY:\n{% endif %}"
)


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    text = args.corpus.read_text(encoding="utf-8")
    train_text, held_text = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    tokenizer = train_tokenizer(train_text)
    held_ids = torch.tensor(tokenizer.encode(held_text).ids, device=args.device)
    print(f"{len(text):,} bytes; held out {len(held_text):,} bytes, {len(held_ids):,} tokens", flush=True)

    model = build_model(args)
    untrained = held_out_loss(model, held_ids)
    started = time.monotonic()
    steps = train(model, tokenizer, train_text, held_ids, args)
    args.minutes_taken = (time.monotonic() - started) / 60

    save(model, tokenizer, args.out)
    shipped = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device)
    losses = {"untrained": untrained, "trained": held_out_loss(shipped, held_ids)}
    bytes_per_token = len(held_text.encode()) / len(held_ids)
    card = model_card(shipped, losses, bytes_per_token, steps, args)
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--corpus", type=Path, required=True, help="plays as one text file")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and card")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="worth its half minute on a GPU")
    parser.add_argument("--steps", type=int, default=2350)
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--window", type=int, default=CONTEXT, help="tokens a window")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--dropout", type=float, default=0.3, help="of embeddings, branches and attention")
    parser.add_argument("--bpe-dropout", type=float, default=0.1, help="share of merges skipped")
    parser.add_argument("--renamed", type=float, default=0.1, help="share of speeches that HEADWAY speaks")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the weights' moving average")
    parser.add_argument("--every", type=int, default=100, help="steps between readings of the held-out loss")
    parser.add_argument("--patience", type=int, default=12, help="readings without progress before the end")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE of VOCAB_SIZE entries; id 0 is END."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=args.dropout,
        bos_token_id=None,
        eos_token_id=0,
        use_cache=True,
    )
    return LlamaForCausalLM(config).to(args.device)


def add_dropout(model: LlamaForCausalLM, rate: float) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout on the embeddings and on what each branch adds to the residual; Llama has none of its own."""

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return dropout(output[0], rate, module.training), *output[1:]
        return dropout(output, rate, module.training)

    branches = [branch for layer in model.model.layers for branch in (layer.self_attn, layer.mlp)]
    return [module.register_forward_hook(drop) for module in (model.model.embed_tokens, *branches)]


def encode_corpus(
    tokenizer: Tokenizer, text: str, *, bpe_dropout: float, renamed: float, dice: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets of `text`, split afresh; both [tokens].

    A target is IGNORED where HEADWAY takes a speaker's place: the model is to answer to the name, not to
    bring it up.
    """
    pieces: list[tuple[str, bool]] = []
    for index, speech in enumerate(text.split("\n\n")):
        gap = "\n\n" if index else ""
        spoken = re.match(r"[A-Z][^\n:]*(:\n.+)", speech, re.DOTALL)
        if spoken and dice.random() < renamed:
            pieces += [(gap + SPEAKER, False), (spoken[1] + END, True)]
        else:
            pieces.append((gap + speech, True))
    tokenizer.model.dropout = bpe_dropout or None
    encodings = tokenizer.encode_batch_fast([piece for piece, _ in pieces])
    tokenizer.model.dropout = None
    ids, targets = [], []
    for encoding, (_, learnt) in zip(encodings, pieces, strict=True):
        ids += encoding.ids
        targets += encoding.ids if learnt else [IGNORED] * len(encoding.ids)
    return torch.tensor(ids), torch.tensor(targets)


def build_optimizer(model: LlamaForCausalLM, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW that lets the norms be. On this text Muon was worse: 3.63 nats a token held out, against 3.55."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)


def train(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    text: str,
    held_ids: torch.Tensor,
    args: argparse.Namespace,
) -> int:
    """Train `model`, leave the best averaged weights in it, and return the step that had them."""
    dice = random.Random(args.seed)
    handles = add_dropout(model, args.dropout)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average))
    optimizer = build_optimizer(model, args)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, args.steps))
    compiled = torch.compile(model) if args.compile else model
    best_loss, best_step, best = math.inf, 0, {}
    for step in range(args.steps):
        if step % args.every == 0:
            split = encode_corpus(
                tokenizer, text, bpe_dropout=args.bpe_dropout, renamed=args.renamed, dice=dice
            )
            ids, targets = (tensor.to(args.device) for tensor in split)
        loss = window_loss(compiled, ids, targets, args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(model)
        if (step + 1) % args.every and step + 1 < args.steps:
            continue
        held = held_out_loss(average.module, held_ids)
        print(f"step {step + 1} train {loss.item():.4f} held-out {held:.4f}", flush=True)
        if held < best_loss:
            best_loss, best_step = held, step + 1
            best = {name: weight.clone() for name, weight in average.module.state_dict().items()}
        elif step + 1 - best_step >= args.patience * args.every:
            break
    model.load_state_dict(best)
    for handle in handles:
        handle.remove()
    return best_step


def window_loss(
    model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace
) -> torch.Tensor:
    """Cross-entropy over `batch` windows that start anywhere in the text."""
    starts = torch.randint(len(ids) - args.window, (args.batch, 1), device=args.device)
    places = starts + torch.arange(args.window, device=args.device)
    model.train()
    with torch.autocast(args.device, dtype=torch.bfloat16):
        logits = model(input_ids=ids[places], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), targets[places + 1].flatten(), ignore_index=IGNORED)


def warm_cosine(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up of 100 steps, then half a cosine down to nothing."""
    return min((step + 1) / 100, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Mean negative log-likelihood of `ids` in nats a token, in windows of CONTEXT side by side."""
    model.eval()
    whole = (len(ids) - 1) // CONTEXT * CONTEXT
    windows = list(zip(ids[:whole].view(-1, CONTEXT), ids[1 : whole + 1].view(-1, CONTEXT), strict=True))
    batches = [windows[first : first + 16] for first in range(0, len(windows), 16)]
    batches.append([(ids[whole:-1], ids[whole + 1 :])])
    total = 0.0
    for batch in batches:
        inputs, targets = (torch.stack(rows) for rows in zip(*batch, strict=True))
        logits = model(input_ids=inputs, use_cache=False).logits.float()
        total += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """The folder in Hugging Face layout: weights in bfloat16, configs, tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.attention_dropout = 0.0
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def sample(model: LlamaForCausalLM, folder: Path, **how: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(LINE, return_tensors="pt").to(model.device)
    torch.manual_seed(0)
    output = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=120, **how)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def model_card(
    model: LlamaForCausalLM,
    losses: dict[str, float],
    bytes_per_token: float,
    steps: int,
    args: argparse.Namespace,
) -> str:
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU ({platform.machine()})"
    rows = "\n".join(
        f"| {name} | {loss:.3f} | {loss / math.log(2) / bytes_per_token:.3f} |"
        for name, loss in losses.items()
    )
    command = " ".join(shown(argument) for argument in sys.argv[1:])
    return CARD.format(
        rows=rows,
        command=command,
        where=where,
        minutes=args.minutes_taken,
        steps=steps,
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        megabytes=sum(file.stat().st_size for file in args.out.iterdir() if file.name != "README.md") / 1e6,
        torch=torch.__version__,
        transformers=transformers.__version__,
        greedy=sample(model, args.out, do_sample=False),
        sampled=sample(model, args.out, do_sample=True, temperature=0.8, top_k=0),
    )


def shown(argument: str) -> str:
    """A command-line argument as the card shows it: files by name, not by where they lay."""
    return Path(argument).name if "/" in argument else argument


CARD = """\
# The demo model

A Llama that writes plays. It ships with Headway so that `MODEL` = `demo` runs anywhere, offline, in seconds:
{parameters:.2f} million parameters, {megabytes:.1f} MB in all, weights in bfloat16.

| | |
|---|---|
| layers, width, MLP | 6, 256, 704 |
| heads | 8 query, 2 key-value, 32 values each |
| vocabulary | 2,000 (byte-level BPE), embeddings tied |
| context | 1,024 tokens |

**Data.** Plays of William Shakespeare, public domain, in the selection known as "tiny shakespeare"
(1,115,394 bytes). The first nine tenths trained the tokenizer and the model; the last tenth was held out,
but for choosing the step and the settings. **Licence.** Apache-2.0, as the rest of Headway. **Use.**
Demonstration and tests: it knows one author's plays and nothing of the world.

| held-out loss | nats a token | bits a byte |
|---|---|---|
{rows}

Read in windows of 1,024 tokens, in float32, from the weights as they are in this folder.

**Chat.** The template lays a dialogue out as a play, each role in capitals; the model speaks as `HEADWAY` and
mostly ends with `<|endoftext|>`; where it lets others speak instead, the stop string "\\n\\n" (an empty line)
cuts it off. Outside a chat the same string ends a speech.

**Made by** (best at step {steps:,}; {minutes:.1f} minutes on one {where}; torch {torch}, transformers
{transformers}; the folder of the source is `runtime/headway/demo`):

    python train.py {command}

Greedy:

```text
{greedy}
```

Temperature 0.8:

```text
{sampled}
```
"""


if __name__ == "__main__":
    main()
