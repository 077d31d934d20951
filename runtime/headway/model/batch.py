"""What one step needs on the device: the decode part first, then the prefill part.

Shape suffixes: T tokens of the step, B sequences that decode, S sequences that prefill, P pages of a table,
N tokens whose logits are wanted.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupInput:
    """The pages of one page group. Tables may hold any page behind a sequence's own.

    slots_T: int64; where each token's key and value go.
    """

    slots_T: Tensor
    decode_table_BP: Tensor  # int32
    prefill_table_SP: Tensor  # int32


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """The first B tokens are one each of the sequences that decode; those that prefill follow in order.

    lengths_T: int64; how long each token's sequence was when the token was first computed: its prompt's
        length, or with the token itself if it was generated.
    limits_T: int64; tokens that each token's sequence may come to have. Rotary embeddings that scale by
        length go by these two, so they depend neither on chunks nor on a replay.
    last_N: int64; which of the T tokens are the last of a sequence whose next token is wanted.
    context lengths: int32; tokens a sequence has in the pool once this step's are written.
    max_context_len: the longest of the decode part, or more (a captured graph takes its table's length).
    query_starts: int32 [S + 1]; the prefill part's tokens of sequence s are those from query_starts[s] to
        query_starts[s + 1], counted from B.
    prefill_lengths: (tokens of this step, context length) of each, on the host.
    groups: in the order of `DecoderSpec.windows`.
    """

    token_ids_T: Tensor  # int64
    positions_T: Tensor  # int64
    lengths_T: Tensor
    limits_T: Tensor
    last_N: Tensor
    groups: tuple[GroupInput, ...]
    decode_context_lens_B: Tensor
    max_context_len: int
    query_starts: Tensor
    prefill_context_lens_S: Tensor
    prefill_lengths: tuple[tuple[int, int], ...]

    @property
    def num_decode(self) -> int:
        return self.decode_context_lens_B.shape[0]
