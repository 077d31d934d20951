"""The sum over ranks of a tensor that each of them has, through peers' memory; and RMS norm of it, at once.

    all_reduce:       out = sum over ranks r, in this order, of x_r      (float32, then rounded)
    all_reduce_norm:  total = out + residual,   normed = total / sqrt(mean(total^2) + eps) * weight

Every rank calls the same operation with the same shapes, in the same order, and gets the same bits.
`PeerMemory` has the protocol; `one_shot` and `two_shot` are the two ways, and `tiles` says when which is
taken. Nothing is allocated but the results, and nothing waits for the host: calls can be captured in CUDA
graphs and replayed, as long as every rank replays the same.

Shape suffixes: T tokens of the step, H hidden size.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.one_shot import _one_shot_kernel, _one_shot_norm_kernel
from headway_kernels.peer_memory import PROGRAMS, SHOT_PROGRAMS, SHOT_WORDS, PeerMemory
from headway_kernels.tiles import padded
from headway_kernels.tiles_all_reduce import SENT_IN_REGISTERS, ShotTile, in_one_shot, row_tile, shot_tile
from headway_kernels.two_shot import _two_shot_kernel

Way = Literal["one shot", "two shots"]
LANGUAGE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def all_reduce(x: Tensor, peers: PeerMemory, *, out: Tensor | None = None, way: Way | None = None) -> Tensor:
    """As `reference.all_reduce` of all ranks' x -> out, which may be x itself.

    x: dense, of any shape. way: None takes the faster one. Raises ValueError for what does not fit each other
    or, see `all_reduce_way`, the peers' memory.
    """
    _check("all_reduce", "x", x, x, peers)
    if out is None:
        out = torch.empty_like(x)
    _check("all_reduce", "out", out, x, peers)
    way = way or _fitting("all_reduce", x, peers, all_reduce_way(x, peers))
    if not x.numel():
        return out
    if way == "two shots":
        _two_shots(x, peers, out=out, cut=_cut_values(x, peers))
        return out
    pairs = _pairs(x, out)
    x_words, out_words = _words(x, pairs), _words(out, pairs)
    if x_words.numel() > SHOT_PROGRAMS * SHOT_WORDS:
        raise _no_room("all_reduce", x, peers, way)
    tile = shot_tile(x_words.numel(), SHOT_PROGRAMS)
    _one_shot_kernel[(triton.cdiv(x_words.numel(), tile.words),)](
        x_words,
        out_words,
        peers.own,
        peers.addresses,
        peers.layout.words,
        x_words.numel(),
        peers.max_polls,
        **_shot_options(x, peers, pairs, tile),
    )
    return out


def all_reduce_norm(
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    peers: PeerMemory,
    residual_TH: Tensor | None = None,
    *,
    normed_TH: Tensor | None = None,
    total_TH: Tensor | None = None,
    way: Way | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.all_reduce_norm` of all ranks' x -> (normed_TH, total_TH), in the given tensors if any.

    x_TH: [..., H], dense. The residual is every rank's own, and equal on all; it may be `total_TH`. The
    weight may be wider than x. Raises ValueError as `all_reduce`, with `norm_way` for what fits.
    """
    op = "all_reduce_norm"
    _check(op, "x_TH", x_TH, x_TH, peers)
    row_size = x_TH.shape[-1] if x_TH.ndim else 0
    if weight_H.shape != (row_size,) or weight_H.stride() != (1,) or weight_H.device != x_TH.device:
        raise mismatch(op, "weight_H", f"[{row_size}] on {x_TH.device}, dense", weight_H)
    normed_TH = torch.empty_like(x_TH) if normed_TH is None else normed_TH
    total_TH = torch.empty_like(x_TH) if total_TH is None else total_TH
    for name, one in (("normed_TH", normed_TH), ("total_TH", total_TH), ("residual_TH", residual_TH)):
        if one is not None:
            _check(op, name, one, x_TH, peers)
    way = way or _fitting(op, x_TH, peers, norm_way(x_TH, peers))
    if not x_TH.numel():
        return normed_TH, total_TH
    if way == "two shots":
        cut = _cut_rows(x_TH, peers)
        _two_shots(
            x_TH,
            peers,
            out=total_TH,
            cut=cut,
            residual=residual_TH,
            weight=weight_H,
            eps=eps,
            normed=normed_TH,
        )
        return normed_TH, total_TH
    pairs = row_size % 2 == 0 and _pairs(x_TH, normed_TH, total_TH, residual_TH)
    x_words = _words(x_TH, pairs)
    row_words = row_size // 2 if pairs else row_size
    num_rows = x_words.numel() // row_words
    if triton.cdiv(num_rows, SHOT_PROGRAMS) * row_words > SHOT_WORDS:
        raise _no_room(op, x_TH, peers, way)
    tile = row_tile(row_words)
    _one_shot_norm_kernel[(min(num_rows, SHOT_PROGRAMS),)](
        x_words,
        None if residual_TH is None else _words(residual_TH, pairs),
        weight_H,
        _words(normed_TH, pairs),
        _words(total_TH, pairs),
        peers.own,
        peers.addresses,
        peers.layout.words,
        num_rows,
        row_words,
        float(row_size),
        eps,
        peers.max_polls,
        HAS_RESIDUAL=residual_TH is not None,
        **_shot_options(x_TH, peers, pairs, tile),
    )
    return normed_TH, total_TH


def all_reduce_way(x: Tensor, peers: PeerMemory) -> Way | None:
    """How `all_reduce` would go; None for a dtype that it does not take, or where there is no room."""
    if x.dtype not in DTYPES:
        return None
    words = x.numel() // 2 if _pairs(x) else x.numel()
    if in_one_shot(4 * words, peers.world_size) and words <= SHOT_PROGRAMS * SHOT_WORDS:
        return "one shot"
    return "two shots" if _cut_values(x, peers).fits(x, peers) else None


def norm_way(x_TH: Tensor, peers: PeerMemory) -> Way | None:
    """How `all_reduce_norm` would go, or None as there: a program must have room for whole rows."""
    if x_TH.dtype not in DTYPES or not x_TH.ndim:
        return None
    row_size = max(x_TH.shape[-1], 1)
    row_words = row_size // 2 if row_size % 2 == 0 and _pairs(x_TH) else row_size
    num_rows = x_TH.numel() // row_size
    short = in_one_shot(4 * row_words * num_rows, peers.world_size)
    if short and triton.cdiv(num_rows, SHOT_PROGRAMS) * row_words <= SHOT_WORDS:
        return "one shot"
    return "two shots" if _cut_rows(x_TH, peers).fits(x_TH, peers) else None


@dataclass(frozen=True, slots=True)
class _Cut:
    """How many values of x a program takes, and how many of those a rank adds up."""

    portion: int
    share: int

    def fits(self, x: Tensor, peers: PeerMemory) -> bool:
        return self.share * x.element_size() <= peers.layout.share_bytes


def _cut_values(x: Tensor, peers: PeerMemory) -> _Cut:
    """Equal portions, but none so small that its flags cost more than its data."""
    room = peers.layout.share_bytes // x.element_size()
    share = max(_rounded(triton.cdiv(x.numel(), PROGRAMS * peers.world_size)), min(1024, room))
    return _Cut(portion=share * peers.world_size, share=share)


def _cut_rows(x_TH: Tensor, peers: PeerMemory) -> _Cut:
    row_size = max(x_TH.shape[-1], 1)
    portion = max(triton.cdiv(x_TH.numel() // row_size, PROGRAMS), 1) * row_size
    return _Cut(portion=portion, share=_rounded(triton.cdiv(portion, peers.world_size)))


def _two_shots(
    x: Tensor,
    peers: PeerMemory,
    *,
    out: Tensor,
    cut: _Cut,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 0.0,
    normed: Tensor | None = None,
) -> None:
    if not cut.fits(x, peers):
        raise _no_room("all_reduce" if weight is None else "all_reduce_norm", x, peers, "two shots")
    row_size = x.shape[-1] if weight is not None else 1
    tile = min(padded(cut.share, 256), 16384 // x.element_size())
    row = padded(row_size)
    layout = peers.layout
    _two_shot_kernel[(triton.cdiv(x.numel(), cut.portion),)](
        x,
        out,
        residual,
        weight,
        normed,
        peers.own,
        peers.addresses,
        layout.flags,
        layout.shares,
        layout.results,
        x.numel(),
        cut.portion,
        cut.share,
        row_size,
        eps,
        peers.max_polls,
        NORM=weight is not None,
        HAS_RESIDUAL=residual is not None,
        RANK=peers.rank,
        WORLD=peers.world_size,
        RANKS=padded(peers.world_size, 2),
        SLOT=layout.share_bytes // x.element_size(),
        V=tile,
        ROW=row,
        num_warps=min(max(max(tile, row) * x.element_size() // 512, 4), 16),
        num_stages=1,
        **FUSED,
    )


def _shot_options(x: Tensor, peers: PeerMemory, pairs: bool, tile: ShotTile) -> dict[str, Any]:
    return {
        "DTYPE": LANGUAGE[x.dtype],
        "PAIRS": pairs,
        "RANK": peers.rank,
        "WORLD": peers.world_size,
        "TOGETHER": tile.words // (32 * tile.num_warps) * peers.world_size <= SENT_IN_REGISTERS,
        "SLOT": SHOT_WORDS,
        "W": tile.words,
        "num_warps": tile.num_warps,
        "num_stages": 1,
        **FUSED,
    }


def _pairs(*tensors: Tensor | None) -> bool:
    """Whether two values fill 4 bytes, at places where 4 bytes may be read."""
    return all(
        one.element_size() == 2 and one.numel() % 2 == 0 and one.data_ptr() % 4 == 0
        for one in tensors
        if one is not None
    )


def _words(x: Tensor, pairs: bool) -> Tensor:
    return x.view(-1).view(torch.int32 if pairs or x.element_size() == 4 else torch.int16)


def _rounded(num_values: int) -> int:
    return -(-num_values // 16) * 16


def _check(op: str, name: str, one: Tensor, x: Tensor, peers: PeerMemory) -> None:
    if one.shape != x.shape or one.dtype != x.dtype or one.dtype not in DTYPES or not one.is_contiguous():
        raise mismatch(op, name, f"{x.dtype} {list(x.shape)}, a dense 16- or 32-bit float", one)
    if one.device != peers.own.device:
        raise mismatch(op, name, f"on {peers.own.device}, as the peers' memory", one)


def _fitting(op: str, x: Tensor, peers: PeerMemory, way: Way | None) -> Way:
    if way is None:
        raise _no_room(op, x, peers, "two shots")
    return way


def _no_room(op: str, x: Tensor, peers: PeerMemory, way: Way) -> ValueError:
    size = f"{x.dtype} {list(x.shape)}, {x.numel() * x.element_size()} bytes"
    return ValueError(f"{op}: x must fit the peers' memory of {peers.max_bytes} bytes in {way}, got {size}")
