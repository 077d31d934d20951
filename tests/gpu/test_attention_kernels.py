"""The attention kernels on a GPU: fresh inputs, poisoned memory, every launch judged against float64.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch

from attention_cases import BESIDE, EMPTY, HEADS, VARIANTS
from attention_checks import check_decode, check_prefill, check_prefill_dense
from headway_kernels.tiles import Tiles
from waiting import without_waiting

pytestmark = pytest.mark.gpu
GPU: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
CHUNKS = [(70, 70), (1, 400), (0, 33), (300, 900), (1, 1), (513, 513)]
LENGTHS = [1, 400, 0, 16, 900, 2049]
PAIRS = [(70, 70), (1, 400), (0, 33), (300, 900), (3, 0), (513, 200), (513, 513)]


def prefill(*arguments: Any, **options: Any) -> None:
    from headway_kernels.gpu import flash_prefill

    check_prefill(flash_prefill, *arguments, **GPU | options)


def dense(*arguments: Any, **options: Any) -> None:
    from headway_kernels.gpu import flash_prefill_dense

    check_prefill_dense(flash_prefill_dense, *arguments, **GPU | options)


def decode(*arguments: Any, **options: Any) -> None:
    from headway_kernels.gpu import paged_decode, plan_decode

    check_decode(paged_decode, plan_decode, *arguments, **GPU | options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads", HEADS)
def test_every_variant_and_grouping(heads: str, variant: str) -> None:
    prefill(CHUNKS, HEADS[heads], variant, head_dim=128)
    decode(LENGTHS, HEADS[heads], variant, head_dim=128)


@pytest.mark.parametrize("variant", ["plain", "all of them"])
def test_without_causality(variant: str) -> None:
    prefill(CHUNKS, HEADS["ragged"], variant, head_dim=128, causal=False)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", ["plain", "all of them"])
@pytest.mark.parametrize("head_dim", [64, 72, 80, 128, 200, 256])
def test_dense_rows(head_dim: int, variant: str, causal: bool) -> None:
    dense(PAIRS, HEADS["ragged"], variant, head_dim=head_dim, causal=causal)


@pytest.mark.parametrize("variant", ["plain", "all of them"])
def test_several_queries_a_sequence(variant: str) -> None:
    decode(LENGTHS, HEADS["ragged"], variant, head_dim=128, num_queries=4)
    decode(LENGTHS, HEADS["MQA, more heads than a tile has rows"], variant, num_queries=2)


@pytest.mark.parametrize("variant", ["plain", "all of them"])
@pytest.mark.parametrize("head_dim", [40, 64, 72, 80, 96, 128, 192, 200, 256])
def test_every_head_size(head_dim: int, variant: str) -> None:
    prefill(CHUNKS, HEADS["GQA"], variant, head_dim=head_dim)
    decode(LENGTHS, HEADS["GQA"], variant, head_dim=head_dim)


@pytest.mark.parametrize("page_size", [16, 32, 48, 64, 80, 128, 1024])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_every_page_size(head_dim: int, page_size: int) -> None:
    prefill(CHUNKS, HEADS["ragged"], "window", head_dim=head_dim, page_size=page_size)
    decode(LENGTHS, HEADS["ragged"], "window", head_dim=head_dim, page_size=page_size)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_long_prompts(head_dim: int, variant: str, causal: bool) -> None:
    lengths = [(70, 70), (1500, 1500), (0, 0), (1, 1)]
    prefill(lengths, HEADS["ragged"], variant, head_dim=head_dim, causal=causal)


@pytest.mark.parametrize("heads", ["ragged", "MQA, more heads than a tile has rows"])
@pytest.mark.parametrize("page_size", [8, 24])
@pytest.mark.parametrize("head_dim", [64, 72, 128, 256])
def test_pages_that_no_box_fits_are_read_by_pointer(head_dim: int, page_size: int, heads: str) -> None:
    """Of decoding the plan is by roles nevertheless, and the plain kernel takes its shares."""
    prefill(CHUNKS, HEADS[heads], "window", head_dim=head_dim, page_size=page_size)
    decode(LENGTHS, HEADS[heads], "window", head_dim=head_dim, page_size=page_size)
    decode(LENGTHS, HEADS[heads], "sinks", head_dim=head_dim, page_size=page_size, num_queries=3)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("beside", BESIDE)
def test_queries_and_results_that_are_parts_of_wider_rows(beside: str, head_dim: int) -> None:
    """The copy engine's kernels take some of them; decoding is planned by roles for the others as well."""
    options: dict[str, Any] = {"head_dim": head_dim, "beside": BESIDE[beside]}
    prefill(CHUNKS, HEADS["ragged"], "sinks", **options)
    dense(PAIRS, HEADS["ragged"], "sinks", **options)
    decode(LENGTHS, HEADS["ragged"], "sinks", **options)
    decode(LENGTHS, HEADS["MQA, more heads than a tile has rows"], num_queries=2, **options)


@pytest.mark.parametrize("variant", ["plain", "all of them"])
@pytest.mark.parametrize("head_dim", [40, 72, 200])
def test_heads_with_room_to_a_multiple_of_16_values(head_dim: int, variant: str) -> None:
    """The copy engine's kernels take these head sizes where queries lie so, keys and values being dense."""
    options: dict[str, Any] = {"head_dim": head_dim, "beside": ((0, 8, 0), (0, 0, 0))}
    prefill(CHUNKS, HEADS["ragged"], variant, **options)
    dense(PAIRS, HEADS["ragged"], variant, **options)
    decode(LENGTHS, HEADS["ragged"], variant, **options)


@pytest.mark.parametrize("variant", ["plain", "sinks"])
@pytest.mark.parametrize("empty", EMPTY)
def test_sequences_without_a_context_give_zeros_and_the_sinks_as_log_sum_exp(
    empty: str, variant: str
) -> None:
    decode(EMPTY[empty], HEADS["ragged"], variant, head_dim=128)
    decode(EMPTY[empty] * 100, HEADS["GQA"], variant, num_queries=2)  # more sequences than programs


@pytest.mark.parametrize("variant", ["plain", "all of them"])
@pytest.mark.parametrize("num_seqs", [1, 5, 300])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_several_blocks_of_rows_of_fewer_sequences_than_programs_and_of_more(
    head_dim: int, num_seqs: int, variant: str
) -> None:
    """284 rows of one KV head and 12 of the other, three blocks each, or five."""
    lengths = [index * 37 % 450 for index in range(3, num_seqs + 3)]
    decode(lengths, (0, 71, 74), variant, head_dim=head_dim, num_queries=4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_with_all_warps_alike(variant: str) -> None:
    tile = Tiles(rows=16, positions=64, num_warps=4, num_stages=2, programs=2)
    decode(LENGTHS, HEADS["ragged"], variant, head_dim=128, tile=tile)
    decode(LENGTHS, HEADS["ragged"], variant, head_dim=80, num_queries=4, tile=tile)


def test_a_batch_of_many_short_contexts_and_a_long_one() -> None:
    """More sequences than programs, some without a context, and one that most programs have a part of."""
    lengths = [9000, *(index % 5 * 40 for index in range(700))]
    for variant in ("plain", "all of them"):
        decode(lengths, HEADS["GQA"], variant, head_dim=128)


def test_rows_off_multiples_of_16_bytes_are_read_by_pointer() -> None:
    prefill(CHUNKS, HEADS["ragged"], head_dim=20)
    dense(PAIRS, HEADS["ragged"], head_dim=20)


def test_many_short_sequences() -> None:
    """More tiles of rows than programs, most of them of a few positions, some with none at all."""
    lengths = [(index % 7, index % 7 + 37 * (index % 5)) for index in range(300)]
    prefill(lengths, HEADS["GQA"], head_dim=128)
    prefill(lengths, HEADS["GQA"], "window", head_dim=64)


@pytest.mark.parametrize("variant", ["plain", "all of them"])
def test_float16(variant: str) -> None:
    prefill(CHUNKS, HEADS["ragged"], variant, dtype=torch.float16)
    decode(LENGTHS, HEADS["ragged"], variant, dtype=torch.float16)


def test_float32_stays_float32() -> None:
    """The hardware's exponential is good to 2^-22 and PyTorch's to half of that: not twice, but near."""
    from headway_kernels.gpu import flash_prefill

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 300, 64, device="cuda") for _ in range(3))
    found = flash_prefill(
        q[0].transpose(0, 1),
        k,
        v,
        page_table_SP=torch.zeros(1, 1, dtype=torch.int32, device="cuda"),
        query_starts=torch.tensor([0, 300], dtype=torch.int32, device="cuda"),
        context_lens_S=torch.tensor([300], dtype=torch.int32, device="cuda"),
        lengths=[(300, 300)],
        group_bounds=range(5),
        scale=0.125,
    )
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True
    )
    assert float((found.transpose(0, 1) - exact[0]).norm() / exact.norm()) < 1e-6


def test_merging_parts_gives_what_the_reference_gives() -> None:
    from headway_kernels import gpu, reference

    torch.manual_seed(0)
    parts, lse = torch.randn(19, 3, 71, 80, device="cuda"), torch.randn(19, 3, 71, device="cuda") * 20
    lse[:, 0, 0] = lse[3] = -torch.inf
    parts[lse == -torch.inf] = torch.nan
    out = torch.full(parts.shape[1:], torch.nan, device="cuda")
    _, whole = gpu.merge(parts, lse, out_TQD=out)
    exact, exact_lse = reference.merge(parts.double(), lse.double())
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.double(), exact_lse, atol=1e-5, rtol=1e-5)


def test_a_captured_step_follows_the_lengths_without_waiting() -> None:
    """One graph, planned inside, replayed with other lengths; nothing waits for the device."""
    from headway_kernels.gpu import paged_decode, plan_decode

    torch.manual_seed(0)
    pools = [torch.randn(64, 2, 16, 128, device="cuda").bfloat16() for _ in range(2)]
    table = torch.randperm(64, device="cuda").int().view(4, 16)
    q = torch.randn(4, 7, 128, device="cuda").bfloat16()
    lengths = torch.tensor([256, 1, 17, 100], dtype=torch.int32, device="cuda")

    def step() -> torch.Tensor:
        plan = plan_decode(lengths, num_kv_heads=2, group=5, head_dim=128, dtype=torch.bfloat16)
        return paged_decode(
            q,
            *pools,
            page_table_BP=table,
            context_lens_B=lengths,
            max_context_len=256,
            group_bounds=(0, 5, 7),
            scale=0.1,
            plan=plan,
        )

    step()
    torch.cuda.synchronize()
    without_waiting(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for new in ([256, 1, 17, 100], [3, 256, 0, 16]):
        lengths.copy_(torch.tensor(new, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, step())
