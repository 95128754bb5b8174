"""The last chunk of a call: all is done before its last values come but their product and a store.

Then nothing else hides what follows those values. So the sums, which need weights alone, are
inverted before; the old state lies in PSUM, decayed; the values that came earlier are added to it;
and the weights of the last piece stand in a tile with zeros for the rows that it is not about, so
that their product is rows on partitions at once, without being turned. One instruction divides it.

Legal on NeuronCore-v3 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.bifurcated_attention.rows import inverse_of, result_of, store_results
from nki_kernels.bifurcated_attention.stages import add_sums
from nki_kernels.bifurcated_attention.suffix import suffix_product, value_piece


def choose_closing(call, jobs):
    """Mark the last job where it is a suffix's, and its state's result is all that is left.

    Not on NeuronCore-v2, whose GpSimd and VectorE take turns at SBUF.
    """
    job = jobs[len(jobs) - 1]
    plain = not call["with_sinks"] and not call["own"]["joined"] and len(call["stores"]) == 1
    if plain and not call["old"] and not job["context"] and job["state"]["jobs"] > 1:
        sizes = job["room"]["sizes"]
        piece = value_piece(sizes["blocks"])
        first = (sizes["blocks"] - 1) // piece * piece
        columns = (sizes["blocks"] - first) * job["tiles"] * job["room"]["rows"]
        apart = nl.ndarray((sizes["parts"], columns), dtype=call["q"].dtype, buffer=nl.sbuf)
        nisa.memset(dst=apart, value=0.0, engine=nisa.engine.gpsimd)
        job["closing"] = {"first": first, "apart": apart}


def set_apart(job):
    """After the weights: those of the last piece, block by block among zeros of other rows."""
    chunk = job["chunk"]
    first = job["closing"]["first"]
    apart = job["closing"]["apart"]
    parts = chunk["parts"]
    tiles = chunk["tiles"]
    rows = chunk["rows"]
    group = chunk["group"]
    blocks = job["room"]["sizes"]["blocks"]
    width = rows // blocks
    nisa.tensor_copy(
        dst=apart.ap(
            pattern=[
                [apart.shape[1], parts],
                [tiles * rows + width, blocks - first],
                [group * rows, tiles // group],
                [1, width],
                [rows, group],
            ],
            offset=first * width,
        ),
        src=chunk["weights"].ap(
            pattern=[
                [tiles * rows, parts],
                [width * group, blocks - first],
                [rows * group, tiles // group],
                [group, width],
                [1, group],
            ],
            offset=first * width * group,
        ),
        engine=nisa.engine.gpsimd,
    )


def close(call, job, d, constants):
    """Last stage of the last chunk, in the place of its fold."""
    chunk = job["chunk"]
    state = job["state"]
    rows = chunk["rows"]
    decay = chunk["decay"]
    sums = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.psum)
    add_sums(sums, chunk, 0, constants)
    total = state["o"][:, d : d + 1]
    nisa.scalar_tensor_tensor(
        dst=total, data=total, op0=nl.multiply, operand0=decay, op1=nl.add, operand1=sums
    )
    inverse = inverse_of(call, job, total)
    decays = nl.ndarray((rows, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=decays, op=nl.copy, data=constants["identity_fp32"][0:rows, 0:rows], scale=decay
    )
    product = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
    first = job["closing"]["first"]
    apart = job["closing"]["apart"]
    if not call["row_chunks"]:
        nisa.nc_matmul(dst=product, stationary=decays, moving=state["o"][:, 0:d])
        if first > 0:
            suffix_product(job, product, d, constants, first)
    for i in range(apart.shape[1] // rows):
        nisa.nc_matmul(
            dst=product,
            stationary=apart[:, i * rows : (i + 1) * rows],
            moving=job["values"][first * job["tiles"] + i],
        )
    if call["row_chunks"]:  # their last ones are folded late
        nisa.nc_matmul(dst=product, stationary=decays, moving=state["o"][:, 0:d])
        if first > 0:
            suffix_product(job, product, d, constants, first)
    nisa.activation(dst=result_of(call, job, d), op=nl.copy, data=product, scale=inverse)
    store_results(call, job)
