"""The fetching warps of the kernels for Hopper: K or V of every tile, each as soon as its place is empty.

A tile comes as boxes: 64 values, which is what lies together in shared memory, by as many positions as lie in
a row, a page's at most. So pages are read where they lie, whatever their size; dense rows are one long page.
Where all values of a page are several whole runs of 64, a box has all of them (`whole`): half as many boxes
at D 128. Boxes outside of what a sequence sees are fetched from outside of the tensor, which gives zeros.
Slots behind its end in its last page may hold anything, NaN too, which no weight of zero would silence: among
values they are overwritten in shared memory.

Shape suffixes: N positions of a tile, D values of a head.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from headway_kernels.hopper_work import begin_of, joined, read_note

BOX_VALUES = gl.constexpr(64)
BOX_ROWS = gl.constexpr(8)  # of a whole box's units: as many rows of 64 values as the product takes together

# Triton 3.6 has other names for these.
_memory = gl.shared_memory_descriptor
reinterpret = _memory.reinterpret if hasattr(_memory, "reinterpret") else _memory._reinterpret
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.constexpr_function
def whole(box):
    """Whether boxes have all values of their positions: [rows / 8, D / 64, 8, 64]."""
    return len(box.block_shape) == 4


@gluon.constexpr_function
def _shape_of(number, box):
    return [number, *box.block_shape]


@gluon.constexpr_function
def interleaved(positions, wide):
    """How a tile [N, D] lies in shared memory that came as whole boxes: [N / 8, D / 64, 8, 64], swizzled as
    the copy engine does, 16 bytes by the row of the 8.
    """
    values, rows = BOX_VALUES.value, BOX_ROWS.value
    offsets = [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16], [0, 32], [1, 8], [2, 16], [4, 32]]
    offsets += [[0, values << bit] for bit in range((wide // values).bit_length() - 1)]
    offsets += [[rows << bit, 0] for bit in range((positions // rows).bit_length() - 1)]
    return gl.SharedLinearLayout(offsets, [], 1024)


@gluon.jit
def fetch(board, box, ring, pages, landed, CLEANS: gl.constexpr, PAGE: gl.constexpr):
    """All tiles of K or V, in turn. CLEANS: of V what lies behind a sequence's end is overwritten."""
    STAGES: gl.constexpr = ring.smem.shape[0]
    POSITIONS: gl.constexpr = ring.smem.shape[1]
    num_done, num_read, num_cleaned = 0, 1, 0
    work, span = read_note(0, board)
    while span.num_tiles > 0:
        for tile in range(span.num_tiles):
            stage = num_done % STAGES
            begin = begin_of(tile, span, POSITIONS)
            full = ring.full.index(stage)
            ends = begin + POSITIONS > work.context_len  # the sequence, within this tile
            if (begin >= span.first) & (begin + POSITIONS <= work.context_len):  # most, so first
                _fetch(begin, box, pages, work, span, ring, num_done, full, False, PAGE)
            elif CLEANS and ends:
                _fetch(begin, box, pages, work, span, ring, num_done, landed.index(0), True, PAGE)
                mbarrier.wait(landed.index(0), num_cleaned & 1)
                _clean(ring.smem.index(stage), work.context_len - begin, whole(box))
                mbarrier.arrive(full, count=1)
                num_cleaned += 1
            else:
                _fetch(begin, box, pages, work, span, ring, num_done, full, True, PAGE)
            num_done += 1
        work, span = read_note(num_read, board)
        num_read += 1


@gluon.jit
def _fetch(
    begin, box, pages, work, span, ring, index_of_all, full, CHECKED: gl.constexpr, PAGE: gl.constexpr
):
    """Have a tile copied to its place as soon as that is empty; `full` tells when it has landed.

    CHECKED: boxes that hold nothing to be seen come from behind the last row of all.
    """
    WHOLE: gl.constexpr = whole(box)
    UNIT: gl.constexpr = BOX_ROWS if WHOLE else 1  # rows that a box's place counts as one
    BOX: gl.constexpr = box.block_shape[0] * BOX_ROWS if WHOLE else box.block_shape[-2]
    STAGES: gl.constexpr = ring.smem.shape[0]
    POSITIONS: gl.constexpr = ring.smem.shape[1]
    CHUNKS: gl.constexpr = ring.smem.shape[2] // BOX_VALUES
    NUM: gl.constexpr = POSITIONS // BOX
    table_ptr, table_row, page_rows = pages
    pages_ptr = table_ptr + work.sequence.to(gl.int64) * table_row
    rows = ()
    for index in gl.static_range(NUM):
        position = begin + index * BOX
        there = True
        if CHECKED:
            there = (position < work.context_len) & (position + BOX > span.first)
        if PAGE == 0:
            row = work.offset + position
        else:
            if POSITIONS % PAGE == 0:  # a tile begins with a page
                page_ptr, slot = pages_ptr + begin // PAGE + index * BOX // PAGE, 0
            else:
                page_ptr, slot = pages_ptr + position // PAGE, position % PAGE
            page = gl.load(page_ptr, mask=there, other=0)
            row = page * (page_rows // UNIT) + work.kv_head * (PAGE // UNIT) + slot // UNIT
        if CHECKED:
            row = gl.where(there, row, box.shape[0 if WHOLE else -2])
        rows = joined(rows, row)
    shape: gl.constexpr = _shape_of(NUM if WHOLE else NUM * CHUNKS, box)
    stage, turn = index_of_all % STAGES, index_of_all // STAGES
    boxes = reinterpret(ring.smem.index(stage), ring.smem.dtype, shape, box.layout)
    mbarrier.wait(ring.empty.index(stage), turn & 1 ^ 1)
    mbarrier.expect(full, POSITIONS * CHUNKS * BOX_VALUES * 2)
    for index in gl.static_range(NUM):
        if WHOLE:
            load_box(box, [rows[index], 0, 0, 0], full, boxes.index(index))
        else:
            for chunk in gl.static_range(CHUNKS):
                if PAGE == 0:
                    place = [work.kv_head, rows[index], chunk * BOX_VALUES]
                else:
                    place = [rows[index], chunk * BOX_VALUES]
                load_box(box, place, full, boxes.index(chunk * NUM + index))


@gluon.jit
def _clean(smem, num_there, WHOLE: gl.constexpr):
    """Zeros behind the first `num_there` positions of `smem` [N, D]."""
    PARTS: gl.constexpr = smem.shape[0] // BOX_ROWS
    CHUNKS: gl.constexpr = smem.shape[1] // BOX_VALUES
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    slot_N = gl.arange(0, BOX_ROWS, layout=gl.SliceLayout(1, layout))
    shape: gl.constexpr = [CHUNKS * PARTS, BOX_ROWS, BOX_VALUES]
    parts = reinterpret(smem, smem.dtype, shape, gl.NVMMASharedLayout(128, 16))
    for index in range(gl.maximum(num_there, 0) // BOX_ROWS, PARTS):
        there_N = index * BOX_ROWS + slot_N < num_there
        for chunk in gl.static_range(CHUNKS):
            part = parts.index(index * CHUNKS + chunk if WHOLE else chunk * PARTS + index)
            part.store(gl.where(there_N[:, None], part.load(layout), 0.0).to(smem.dtype))
    fence_async_shared()
