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
from typing import Literal

import torch
import triton
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.one_shot import _one_shot_kernel
from headway_kernels.peer_memory import PROGRAMS, WORD_BYTES, PeerMemory
from headway_kernels.tiles import padded
from headway_kernels.tiles_all_reduce import ShotTile, in_one_shot, row_tile, shot_tile
from headway_kernels.two_shot import _two_shot_kernel

Way = Literal["one shot", "two shots"]


def all_reduce(x: Tensor, peers: PeerMemory, *, out: Tensor | None = None, way: Way | None = None) -> Tensor:
    """As `reference.all_reduce` of all ranks' x -> out, which may be x itself.

    x: dense, of any shape. way: None takes the faster one. Raises ValueError for what does not fit each other
    or, see `all_reduce_way`, the peers' memory. A peer that does not come in time ends the context: a later
    call of CUDA raises, as "unspecified launch failure" or "an illegal instruction was encountered".
    """
    _check("all_reduce", "x", x, x, peers)
    if out is None:
        out = torch.empty_like(x)
    _check("all_reduce", "out", out, x, peers)
    way = _known("all_reduce", way) or _fitting("all_reduce", x, peers, all_reduce_way(x, peers))
    if not x.numel():
        return out
    if way == "two shots":
        _two_shots(x, peers, out=out, cut=_cut_values(x, peers))
    else:
        _one_shot(x, peers, out=out, shot=_shot_values(x))
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
    way = _known(op, way) or _fitting(op, x_TH, peers, norm_way(x_TH, peers))
    if not x_TH.numel():
        return normed_TH, total_TH
    norm = _Norm(residual=residual_TH, weight=weight_H, eps=eps, normed=normed_TH)
    if way == "two shots":
        _two_shots(x_TH, peers, out=total_TH, cut=_cut_rows(x_TH, peers), norm=norm)
    else:
        _one_shot(x_TH, peers, out=total_TH, shot=_shot_rows(x_TH), norm=norm)
    return normed_TH, total_TH


def _known(op: str, way: Way | None) -> Way | None:
    if way not in (None, "one shot", "two shots"):
        raise ValueError(f"{op}: way must be 'one shot' or 'two shots', got {way!r}")
    return way


def all_reduce_way(x: Tensor, peers: PeerMemory) -> Way | None:
    """How `all_reduce` would go; None for a dtype that it does not take, or where there is no room."""
    if x.dtype not in DTYPES:
        return None
    if in_one_shot(x.numel() * x.element_size(), peers.world_size) and _shot_values(x).fits(peers):
        return "one shot"
    return "two shots" if _cut_values(x, peers).fits(x, peers) else None


def norm_way(x_TH: Tensor, peers: PeerMemory) -> Way | None:
    """How `all_reduce_norm` would go, or None as there: a program must have room for whole rows."""
    if x_TH.dtype not in DTYPES or not x_TH.ndim:
        return None
    if in_one_shot(x_TH.numel() * x_TH.element_size(), peers.world_size) and _shot_rows(x_TH).fits(peers):
        return "one shot"
    return "two shots" if _cut_rows(x_TH, peers).fits(x_TH, peers) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Norm:
    residual: Tensor | None
    weight: Tensor
    eps: float
    normed: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shot:
    """Tiles of a call in one shot; `tile` is None where they are rows too long for a program."""

    tile: ShotTile | None
    num_tiles: int
    tile_size: int  # values
    tile_words: int

    def fits(self, peers: PeerMemory) -> bool:
        words = triton.cdiv(self.num_tiles, PROGRAMS) * self.tile_words
        return self.tile is not None and words <= peers.layout.shot_words


def _shot_values(x: Tensor) -> _Shot:
    tile = shot_tile(_num_words(x.numel(), x), PROGRAMS)
    size = tile.words * WORD_BYTES // x.element_size()
    return _Shot(tile=tile, num_tiles=triton.cdiv(x.numel(), size), tile_size=size, tile_words=tile.words)


def _shot_rows(x_TH: Tensor) -> _Shot:
    row_size = max(x_TH.shape[-1], 1)
    words = _num_words(row_size, x_TH)
    tile = row_tile(words)
    return _Shot(tile=tile, num_tiles=x_TH.numel() // row_size, tile_size=row_size, tile_words=words)


def _num_words(num_values: int, x: Tensor) -> int:
    return -(-num_values * x.element_size() // WORD_BYTES)


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


def _one_shot(x: Tensor, peers: PeerMemory, *, out: Tensor, shot: _Shot, norm: _Norm | None = None) -> None:
    if shot.tile is None or not shot.fits(peers):
        raise _no_room("all_reduce" if norm is None else "all_reduce_norm", x, peers, "one shot")
    _one_shot_kernel[(min(shot.num_tiles, PROGRAMS),)](
        x,
        norm and norm.residual,
        norm and norm.weight,
        out,
        norm and norm.normed,
        peers.own,
        peers.address_tuple,
        peers.layout.words,
        x.numel(),
        shot.num_tiles,
        shot.tile_size,
        norm.eps if norm else 0.0,
        peers.max_polls,
        NORM=norm is not None,
        HAS_RESIDUAL=norm is not None and norm.residual is not None,
        RANK=peers.rank,
        WORLD=peers.world_size,
        SLOT=peers.layout.shot_words,
        W=shot.tile.words,
        THREADS=shot.tile.num_threads,
        num_warps=shot.tile.num_warps,
        num_stages=1,
        **FUSED,
    )


def _two_shots(x: Tensor, peers: PeerMemory, *, out: Tensor, cut: _Cut, norm: _Norm | None = None) -> None:
    if not cut.fits(x, peers):
        raise _no_room("all_reduce" if norm is None else "all_reduce_norm", x, peers, "two shots")
    row_size = x.shape[-1] if norm else 1
    tile = min(padded(cut.share, 256), 16384 // x.element_size())
    row = padded(row_size)
    layout = peers.layout
    _two_shot_kernel[(triton.cdiv(x.numel(), cut.portion),)](
        x,
        out,
        norm and norm.residual,
        norm and norm.weight,
        norm and norm.normed,
        peers.own,
        peers.addresses,
        layout.flags,
        layout.shares,
        layout.results,
        x.numel(),
        cut.portion,
        cut.share,
        row_size,
        norm.eps if norm else 0.0,
        peers.max_polls,
        NORM=norm is not None,
        HAS_RESIDUAL=norm is not None and norm.residual is not None,
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
