"""Text out of tokens, one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headway.serving import detokenizer
from headway.serving.detokenizer import MAX_PENDING_TOKENS, Detokenizer
from headway.serving.tokenizer import TextTokenizer


def byte_tokenizer() -> TextTokenizer:
    """A token for each byte, and a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return TextTokenizer(backend)


def blank_tokenizer() -> TextTokenizer:
    """Words with a leading blank in the manner of SentencePiece, which a decoder drops at the start."""
    vocab = {"▁to": 0, "▁be": 1, "<unk>": 2}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return TextTokenizer(backend)


BYTES = byte_tokenizer()
END = 256


def pieces(token_ids: list[int], prompt: str = "x") -> list[str]:
    stream = Detokenizer(BYTES, BYTES.encode(prompt))
    return [*map(stream.push, token_ids), stream.flush()]


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_the_pieces_make_the_text_and_no_character_is_split(text: str) -> None:
    out = pieces(list(BYTES.encode(text)))
    assert "".join(out) == text
    assert all("\ufffd" not in piece for piece in out) or "\ufffd" in text


@given(st.lists(st.integers(0, 256), max_size=200))
@settings(max_examples=100)
def test_any_bytes_make_the_text_of_the_whole(token_ids: list[int]) -> None:
    assert "".join(pieces(token_ids)) == BYTES.decode(token_ids)


def test_a_character_comes_out_with_its_last_byte() -> None:
    assert pieces(list(BYTES.encode("a€"))) == ["a", "", "", "€", ""]


def test_special_tokens_have_no_text() -> None:
    assert pieces([*BYTES.encode("a"), END, *BYTES.encode("b")]) == ["a", "", "b", ""]


def test_a_character_cut_off_by_the_end_is_flushed_as_one_replacement() -> None:
    assert "".join(pieces(list(BYTES.encode("a€"))[:-1])) == "a\ufffd"


def test_the_first_word_keeps_the_blank_that_parts_it_from_the_prompt() -> None:
    stream = Detokenizer(blank_tokenizer(), (0,))
    assert (stream.push(1), stream.push(0)) == (" be", " to")


def test_a_prompt_that_ends_within_a_character_does_not_come_out_again() -> None:
    stream = Detokenizer(BYTES, (*BYTES.encode("abc"), *BYTES.encode("€")[:1]))
    assert "abc" not in stream.push(BYTES.encode("d")[0]) + stream.flush()


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    half = BYTES.encode("€")[0]
    stream = Detokenizer(BYTES, BYTES.encode("x"))
    out = [stream.push(half) for _ in range(10 * MAX_PENDING_TOKENS)]
    assert len(stream._pending) < MAX_PENDING_TOKENS
    assert "".join([*out, stream.flush()]) == "\ufffd" * 10 * MAX_PENDING_TOKENS


def test_a_decoder_that_takes_its_words_back_does_not_end_the_stream(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    class Fickle:
        def __init__(self, **_: object) -> None: ...

        def step(self, *_: object) -> str:
            raise Exception("Invalid prefix encountered")

    monkeypatch.setattr(detokenizer, "DecodeStream", Fickle)
    assert "".join(pieces(list(BYTES.encode("ab")))) == "ab"
