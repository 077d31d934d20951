"""Memory of each rank that all ranks of a host may write: what `all_reduce` exchanges through.

Protocol. A rank writes to its peers and reads only what lies in its own memory: a write need not be
answered before the next one leaves. Program p of a kernel deals with program p of the other ranks alone, in
places that no other program touches, whatever the size of the call and of its grid.

- *Epochs.* Program p counts the calls that it took part in, in its rank's own memory. All ranks launch the
  same calls in the same order, on one stream each, so the count of program p is the same on all of them. It
  is read and raised by the kernel: a replayed CUDA graph counts on by itself. It never is 0, which fresh
  memory holds.
- *What says that data is there.* In one shot the data itself: no 4 bytes of it are 0 as they are sent, and
  who has read them puts back 0, which fresh memory holds (see `words`). In two shots a program releases a
  word with the epoch at each peer once all of its data is written, and the peer acquires it: that need not
  be reset, and what an earlier call left cannot be mistaken for it.
- *Nothing is overwritten that may still be read*, and nothing put back to 0 that has come anew. Places
  alternate with the parity of the epoch, so epoch e can only spoil e - 2. Program p sends for e once its
  call of e - 1 has ended, so once it had the data of program p of every peer in e - 1; that peer's kernel of
  e - 1 had then begun, so its kernel of e - 2 had ended, with all that it read and wrote. Both kinds of call
  wait for every peer, so this holds across kinds, sizes and grids, and no barrier ends a call.
- *No program waits for one that cannot run.* Program p sends before it waits, and waits for program p of the
  peers alone. Where a GPU has no room for all of a grid, it starts them in ascending order: the least one
  that has not ended, on any rank, has started on all of them, or can.

A wait gives up after `max_polls` polls (about a microsecond each) and stops the GPU's context with a trap, so
that a rank that has died ends the others with an error instead of a hang.

NVLink multicast is not used, and memory is not exchanged where torch would set multicast up beside it.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

c10d: Any = torch.distributed  # the stubs of its C++ classes lack half of what is used here

PROGRAMS = 128  # of a grid, at most: an H100 or H200 has 132 multiprocessors
WORD_BYTES = 8  # of what travels in one shot
SHOT_WORDS = 2048  # that a program may send to each peer: a row of 8192 16-bit values
MAX_BYTES = 8 << 20  # of a call
MAX_POLLS = 60_000_000
LINE = 128  # bytes that regions begin at multiples of


class PeerMemoryError(RuntimeError):
    """Ranks cannot reach each other's memory; the text says why, the same on every rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where things are in a rank's memory, in bytes from its start; the same on all ranks.

    epochs: int32 [PROGRAMS]; flags: int32 [PROGRAMS, 2 exchanges, world_size];
    words: int64 [PROGRAMS, 2 parities, world_size - 1 senders, shot_words], 0 but for what is on its way;
    shares: [PROGRAMS, 2 parities, world_size senders, share_bytes], unreduced, from everyone;
    results: [PROGRAMS, 2 parities, world_size senders, share_bytes], reduced, each share from one rank.
    """

    world_size: int
    share_bytes: int
    shot_words: int
    flags: int
    words: int
    shares: int
    results: int
    num_bytes: int

    @classmethod
    def of(cls, world_size: int, max_bytes: int) -> "Layout":
        """For calls of up to `max_bytes`, in one shot too for two ranks, which send no less in two.

        Raises ValueError for values out of range.
        """
        if not 1 <= world_size <= 8:
            raise ValueError(f"peer memory: world_size must be 1 to 8, got {world_size}")
        if max_bytes < 1:
            raise ValueError(f"peer memory: max_bytes must be positive, got {max_bytes}")
        share_bytes = _rounded(-(-max_bytes // (PROGRAMS * world_size)))
        shot_words = SHOT_WORDS + (-(-max_bytes // (PROGRAMS * WORD_BYTES)) if world_size == 2 else 0)
        region = PROGRAMS * 2 * world_size * share_bytes
        flags = _rounded(4 * PROGRAMS)
        words = flags + _rounded(4 * PROGRAMS * 2 * world_size)
        shares = words + _rounded(WORD_BYTES * PROGRAMS * 2 * max(world_size - 1, 1) * shot_words)
        return cls(
            world_size=world_size,
            share_bytes=share_bytes,
            shot_words=shot_words,
            flags=flags,
            words=words,
            shares=shares,
            results=shares + region,
            num_bytes=shares + 2 * region,
        )


class PeerMemory:
    """One rank's view of the memory of all.

    own: uint8 [layout.num_bytes], zeroed before any peer could write it.
    addresses: of every rank's memory, in rank order, as this process and device sees them.
    keep: whatever must live as long.

    One call at a time: calls of a rank go to one stream, in the same order on all ranks.
    """

    def __init__(
        self,
        own: Tensor,
        addresses: Sequence[int],
        rank: int,
        *,
        max_bytes: int = MAX_BYTES,
        max_polls: int = MAX_POLLS,
        keep: object = None,
    ) -> None:
        self.layout = Layout.of(len(addresses), max_bytes)
        if own.dtype != torch.uint8 or own.shape != (self.layout.num_bytes,):
            expected = f"uint8 [{self.layout.num_bytes}]"
            raise ValueError(f"peer memory: own must be {expected}, got {own.dtype} {list(own.shape)}")
        if not 0 <= rank < len(addresses) or addresses[rank] != own.data_ptr():
            raise ValueError(f"peer memory: addresses[{rank}] must be that of own, {own.data_ptr():#x}")
        self.rank = rank
        self.world_size = len(addresses)
        self.max_bytes = max_bytes
        self.max_polls = max_polls
        self.own = own
        self.address_tuple = tuple(addresses)
        self.addresses = torch.tensor(self.address_tuple, dtype=torch.int64, device=own.device)
        self._keep = keep

    @classmethod
    def meet(
        cls,
        store: "Store",
        rank: int,
        world_size: int,
        *,
        device: torch.device,
        max_bytes: int = MAX_BYTES,
        max_polls: int = MAX_POLLS,
    ) -> "PeerMemory":
        """Exchange memory through `store`, once for each store. All ranks call this, with equal sizes.

        Every process must see all GPUs of the ranks. Raises PeerMemoryError, on all ranks, where a rank
        cannot reach another's memory, and what the store raises if a rank does not come.
        """
        store = c10d.PrefixStore("headway/peers", store)
        _check_reach(store, rank, world_size, device)
        layout = Layout.of(world_size, max_bytes)
        own = keep = None
        addresses: list[int] = []
        with torch.cuda.device(device):
            try:
                own, addresses, keep = _exchanged(store, rank, world_size, layout.num_bytes, device)
            except RuntimeError as error:
                problem = str(error).partition("\n")[0]
            else:
                problem = ""
        _agree(store, rank, world_size, "exchanged", {"problem": problem})
        assert own is not None
        return cls(own, addresses, rank, max_bytes=max_bytes, max_polls=max_polls, keep=keep)


def _check_reach(store: "Store", rank: int, world_size: int, device: torch.device) -> None:
    """Raise PeerMemoryError unless the ranks are on one host, on devices that reach each other."""
    problem = ""
    reach: list[int] = []
    if device.type != "cuda":
        problem = f"{device} is no GPU"
    else:
        problem = _multicast(device)
        count = torch.cuda.device_count()
        reach = [other for other in range(count) if _reaches(device.index, other)]
    seen = {"host": socket.gethostname(), "device": device.index, "reach": reach, "problem": problem}
    ranks = _agree(store, rank, world_size, "reach", seen)
    if len({one["host"] for one in ranks}) > 1:
        raise PeerMemoryError("the ranks are on several hosts")
    if len({one["device"] for one in ranks}) < world_size:
        raise PeerMemoryError(f"ranks share a device: {[one['device'] for one in ranks]}")
    for index, one in enumerate(ranks):
        for other in ranks:
            if other["device"] not in one["reach"]:
                text = f"device {one['device']} of rank {index} cannot reach device {other['device']}"
                raise PeerMemoryError(text)


def _reaches(device: int, other: int) -> bool:
    return device == other or torch.cuda.can_device_access_peer(device, other)


def _multicast(device: torch.device) -> str:
    """Why torch must not be asked, or nothing: it makes a multicast object wherever the device has them."""
    from torch._C._autograd import DeviceType
    from torch._C._distributed_c10d import _SymmetricMemory

    if _SymmetricMemory.has_multicast_support(DeviceType.CUDA, device.index):
        return "torch would use NVLink multicast: TORCH_SYMM_MEM_DISABLE_MULTICAST=1 is not set"
    return ""


def _agree(
    store: "Store", rank: int, world_size: int, what: str, seen: dict[str, Any]
) -> list[dict[str, Any]]:
    """What every rank has seen; raise PeerMemoryError, on all of them, if one has a problem."""
    store.set(f"{what}/{rank}", json.dumps(seen))
    ranks: list[dict[str, Any]] = [json.loads(store.get(f"{what}/{one}")) for one in range(world_size)]
    for index, one in enumerate(ranks):
        if one["problem"]:
            raise PeerMemoryError(f"rank {index}: {one['problem']}")
    return ranks


def _exchanged(
    store: "Store", rank: int, world_size: int, num_bytes: int, device: torch.device
) -> tuple[Tensor, list[int], object]:
    """Zeroed memory of this rank, the addresses of all, and what must be kept.

    torch finds the store through a process group known by one name to all; it needs no backend for that. The
    memory is zero before `rendezvous`, and no rank leaves that before all have come.
    """
    from torch._C._distributed_c10d import _register_process_group, _SymmetricMemory

    group: Any = c10d.ProcessGroup(store, rank, world_size)
    if rank == 0:
        store.set("name", f"headway-peers-{uuid4().hex}")
    name: Any = store.get("name").decode()
    _register_process_group(name, group)
    own = _SymmetricMemory.empty_strided_p2p((num_bytes,), (1,), torch.uint8, device, name)
    own.zero_()
    torch.cuda.synchronize(device)
    handle: Any = _SymmetricMemory.rendezvous(own, name)
    if handle is None:
        raise RuntimeError("torch has no symmetric memory for this tensor")
    addresses = [int(address) for address in handle.buffer_ptrs]
    if addresses[rank] != own.data_ptr():
        raise RuntimeError("torch's symmetric memory is not where its tensor is")
    return own, addresses, (group, handle)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // LINE) * LINE
