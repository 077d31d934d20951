"""The bundled model: small enough to ship, complete, and trained."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import headway

FOLDER = Path(headway.__file__).parent / "demo"
SHIPPED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
MAX_BYTES = 12_000_000

# Macbeth, act 5, scene 5 (public domain): not one of the plays that the model was trained on.
UNSEEN = """\
MACBETH:
To-morrow, and to-morrow, and to-morrow,
Creeps in this petty pace from day to day
To the last syllable of recorded time,
And all our yesterdays have lighted fools
The way to dusty death. Out, out, brief candle!
Life's but a walking shadow, a poor player
That struts and frets his hour upon the stage
And then is heard no more: it is a tale
Told by an idiot, full of sound and fury,
Signifying nothing.
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def trained() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, ids: list[int]) -> float:
    """Nats a token."""
    inputs = torch.tensor([ids])
    return model(input_ids=inputs, labels=inputs).loss.item()


def test_all_its_files_together_stay_within_12_megabytes() -> None:
    assert sum((FOLDER / name).stat().st_size for name in (*SHIPPED, "README.md")) <= MAX_BYTES


def test_it_is_a_llama_with_grouped_query_heads_in_bfloat16() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 2)
    assert (config["max_position_embeddings"], config["vocab_size"]) == (1024, 2000)
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", True)


def test_it_predicts_an_unseen_speech_far_better_than_untrained_weights_do(
    tokenizer: Tokenizer, trained: LlamaForCausalLM
) -> None:
    ids = tokenizer.encode(UNSEEN).ids
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(trained.config).eval()
    assert loss_of(trained, ids) < loss_of(untrained, ids) - 2.5


@pytest.mark.parametrize("text", [UNSEEN, "naïve café – 東京 🎭\n\n\ttabs  and   spaces ", "\n\n", "ROMEO:"])
def test_text_survives_the_way_through_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.get_vocab_size() == 2000


def test_transformers_reads_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(FOLDER)
    assert theirs(UNSEEN).input_ids == tokenizer.encode(UNSEEN).ids
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", 0)


def test_the_chat_template_lays_a_dialogue_out_as_a_play() -> None:
    messages = [
        {"role": "user", "content": "Who goes there?"},
        {"role": "assistant", "content": "A friend."},
        {"role": "user", "content": "Stand, friend."},
    ]
    play = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert play == (
        "USER:\nWho goes there?\n\nHEADWAY:\nA friend.<|endoftext|>\n\nUSER:\nStand, friend.\n\nHEADWAY:\n"
    )
