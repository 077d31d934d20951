"""The reference's ops but attention and sampling: each against a naive computation."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from headway_kernels import reference


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 6])
def test_kv_write_norms_heads_rotates_pairs_and_fills_the_slots_alone(
    rotated: int, interleaved: bool, normed: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 4, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    q_norm, k_norm = torch.rand(2, 8) if normed else (None, None)
    angle = torch.randn(5, rotated // 2)
    pools = [torch.full((6, 2, 4, 8), torch.nan) for _ in range(2)]
    slots = torch.tensor([7, 8, 0, 23, 13])
    turned = reference.kv_write(
        q,
        k,
        v,
        cos_TR=torch.cat((angle, angle), -1).cos(),
        sin_TR=torch.cat((-angle, angle), -1).sin(),
        slots_T=slots,
        k_pool=pools[0],
        v_pool=pools[1],
        interleaved=interleaved,
        q_norm_D=q_norm,
        k_norm_D=k_norm,
        eps=0.1,
    )

    def naive(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
        half = rotated // 2
        first, second = range(half), range(half, rotated)
        if interleaved:
            first, second = range(0, rotated, 2), range(1, rotated, 2)
        pairs = torch.complex(x[..., first], x[..., second])
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
        out = x.clone()
        out[..., first], out[..., second] = pairs.real, pairs.imag
        return out

    torch.testing.assert_close(turned, naive(q, q_norm))
    for pool, rows in zip(pools, (naive(k, k_norm), v), strict=True):
        written = pool.transpose(1, 2).reshape(24, 2, 8)
        torch.testing.assert_close(written[slots], rows)
        assert int(written.isfinite().all(-1).all(-1).sum()) == 5


def test_kv_write_without_angles_leaves_queries_and_keys_as_they_are() -> None:
    q, k, v = torch.randn(1, 4, 8), torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    pools = [torch.zeros(2, 2, 4, 8) for _ in range(2)]
    slot = torch.tensor([5])
    same = reference.kv_write(
        q, k, v, cos_TR=None, sin_TR=None, slots_T=slot, k_pool=pools[0], v_pool=pools[1]
    )
    assert torch.equal(same, q)
    assert torch.equal(pools[0][1, :, 1], k[0])
    assert torch.equal(pools[1][1, :, 1], v[0])


@pytest.mark.parametrize("biased", [False, True])
def test_layer_norm_adds_the_residual_first(biased: bool) -> None:
    x, residual, weight = torch.randn(3, 33), torch.randn(3, 33), torch.randn(33)
    bias = torch.randn(33) if biased else None
    normed, total = reference.layer_norm(x, weight, bias, 1e-5, residual)
    assert torch.equal(total, x + residual)
    wide = total.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(normed, (expected + (0 if bias is None else bias)).float())


def test_a_weight_wider_than_the_values_of_rms_norm_is_not_rounded() -> None:
    x, weight = torch.randn(3, 33).bfloat16(), 1 + torch.randn(33) / 300
    expected = reference.rms_norm(x.double(), weight.double(), 1e-6)[0]
    assert torch.equal(reference.rms_norm(x, weight, 1e-6)[0], expected.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_adds_the_residual_first_and_computes_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual, weight = (
        torch.randn(3, 33).to(dtype),
        torch.randn(3, 33).to(dtype),
        torch.randn(33).to(dtype),
    )
    normed, total = reference.rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(total, x + residual)
    wide = total.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(normed, expected.to(dtype))
    alone, same = reference.rms_norm(total, weight, 1e-5)
    assert torch.equal(alone, normed)
    assert same is total


def test_silu_mul_takes_the_gate_first() -> None:
    gate, up = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(reference.silu_mul(torch.cat((gate, up), -1)), gate * gate.sigmoid() * up)


def test_gelu_mul_and_clamped_silu_mul_take_the_gate_first() -> None:
    gate, up = 3 * torch.randn(9, 5), 3 * torch.randn(9, 5)
    both = torch.cat((gate, up), -1)
    exact = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(reference.gelu_mul(both), exact * up)
    inner = (2 / math.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    torch.testing.assert_close(reference.gelu_mul(both, "tanh"), gate * 0.5 * (1 + inner.tanh()) * up)
    low, cut = gate.minimum(torch.tensor(2.0)), up.clamp(-2, 2)
    expected = low * (1.7 * low).sigmoid() * (cut + 1)
    torch.testing.assert_close(reference.clamped_silu_mul(both, clamp=2.0, alpha=1.7), expected)


def test_the_likeliest_experts_are_chosen_and_their_weights_may_be_renormalised() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64)
    weights, experts = reference.route(logits, top_k=2, renormalise=False)
    probabilities = logits.softmax(-1)
    for token in range(6):
        best = sorted(range(5), key=lambda expert: -probabilities[token, expert])[:2]
        assert experts[token].tolist() == best
    torch.testing.assert_close(weights.double(), probabilities.gather(1, experts), rtol=1e-6, atol=0)
    shares, same = reference.route(logits, top_k=2, renormalise=True)
    assert torch.equal(same, experts)
    torch.testing.assert_close(shares, weights / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 2, 30])
def test_moe_is_the_weighted_sum_of_each_tokens_experts(num_tokens: int, biased: bool) -> None:
    torch.manual_seed(num_tokens)
    x, gate_up, down = torch.randn(num_tokens, 4), torch.randn(5, 6, 4), torch.randn(5, 4, 3)
    biases = (torch.randn(5, 6), torch.randn(5, 4)) if biased else (None, None)
    experts = torch.stack([torch.randperm(5)[:2] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, 2)
    out = reference.moe(
        x,
        weights_TK=weights,
        experts_TK=experts,
        gate_up_E2IH=gate_up,
        down_EHI=down,
        activation=reference.silu_mul,
        gate_up_bias_E2I=biases[0],
        down_bias_EH=biases[1],
    )
    for token in range(num_tokens):
        expected = torch.zeros(4)
        for weight, expert in zip(weights[token], experts[token].tolist(), strict=True):
            up = gate_up[expert] @ x[token] + (0 if biases[0] is None else biases[0][expert])
            inner = reference.silu_mul(up[None])[0]
            expected += weight * (down[expert] @ inner + (0 if biases[1] is None else biases[1][expert]))
        torch.testing.assert_close(out[token], expected)


def test_no_op_reads_a_value_of_its_device() -> None:
    """On the meta device there are shapes and no values: whatever would wait for a GPU raises here."""
    with torch.device("meta"):
        pool, q, k = torch.empty(9, 2, 4, 8), torch.empty(6, 7, 8), torch.empty(6, 2, 8)
        slots, angle = torch.empty(6, dtype=torch.int64), torch.empty(6, 8)
        table, lengths = torch.empty(6, 4, dtype=torch.int32), torch.empty(6, dtype=torch.int32)
    q = reference.kv_write(q, k, k, cos_TR=angle, sin_TR=angle, slots_T=slots, k_pool=pool, v_pool=pool)
    per_head = torch.empty(7, device="meta")
    variants = {"softcap": 2.0, "sinks_Q": per_head, "alibi_slopes_Q": per_head}
    weights, experts = reference.route(torch.empty(6, 5, device="meta"), top_k=2, renormalise=True)
    mixed = reference.moe(
        torch.empty(6, 4, device="meta"),
        weights_TK=weights,
        experts_TK=experts,
        gate_up_E2IH=torch.empty(5, 6, 4, device="meta"),
        down_EHI=torch.empty(5, 4, 3, device="meta"),
        activation=reference.silu_mul,
    )
    assert mixed.shape == (6, 4)
    for rows, more in product((1, 3), ({}, variants)):
        for window in (None, 5):
            common = {"group_bounds": (0, 5, 7), "scale": 1.0, "window": window, **more}
            decoded = reference.paged_decode(
                q[:rows],
                pool,
                pool,
                page_table_BP=table[:rows],
                context_lens_B=lengths[:rows],
                max_context_len=16,
                **common,
            )
            prefilled = reference.flash_prefill(
                q,
                pool,
                pool,
                page_table_SP=table[:2],
                query_starts=lengths[:3],
                context_lens_S=lengths[:2],
                lengths=((2, 9), (4, 4)),
                **common,
            )
            assert (decoded.shape, prefilled.shape) == ((rows, 7, 8), (6, 7, 8))
