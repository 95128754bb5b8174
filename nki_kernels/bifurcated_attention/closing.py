"""How a call ends on NeuronCore-v3, where nothing else hides what follows its last products.

Suffixes last: all is done before the last values come but their product and a store. The sums,
which need weights alone, are inverted before; the old state lies in PSUM, decayed; the values that
came earlier are added to it; and the weights of the last piece stand in a tile with zeros for the
rows that it is not about, so that their product is rows on partitions at once, without being
turned. One instruction divides it.

Split units: their products come one right after the other, each of which would have to be added to
the state in turn. All decays are known long before. So the old state is multiplied by all of them,
and each product by those behind it, in the order in which they come.

Legal on NeuronCore-v3 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.bifurcated_attention.plan import plain
from nki_kernels.bifurcated_attention.rows import inverse_of, result_of, store_results
from nki_kernels.bifurcated_attention.stages import add_sums
from nki_kernels.bifurcated_attention.suffix import suffix_product, value_piece


def choose_closing(call, jobs):
    """Mark the last job where it is a suffix's, and its state's result is all that is left.

    Not on NeuronCore-v2, whose GpSimd and VectorE take turns at SBUF.
    """
    job = jobs[len(jobs) - 1]
    if plain(call) and not call["old"] and not job["context"] and job["state"]["jobs"] > 1:
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


def end_rows(call, job, d):
    """What `plan.put_off` has left, and the division by the sum.

    o = decays · o + later decays · products; sums likewise.
    """
    before = job["ending"]["unit"]
    suffix = job["ending"]["suffix"]["chunk"]
    unit = job["unit"]
    rows = job["room"]["rows"]
    o = job["state"]["o"][:, 0:d]
    total = job["state"]["o"][:, d : d + 1]
    decays = [unit["decay"]]  # from the last one on
    for decay in (suffix["decay"], before["decay"]):
        product = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=product, data1=decays[-1], data2=decay, op=nl.multiply)
        decays.append(product)
    nisa.activation(dst=o, op=nl.copy, data=o, scale=decays[2])
    nisa.activation(dst=total, op=nl.copy, data=total, scale=before["decay"], bias=before["total"])
    nisa.scalar_tensor_tensor(
        dst=total,
        data=total,
        op0=nl.multiply,
        operand0=suffix["decay"],
        op1=nl.add,
        operand1=suffix["product"][:, d : d + 1],
    )
    nisa.activation(dst=total, op=nl.copy, data=total, scale=unit["decay"], bias=unit["total"])
    inverse = inverse_of(call, job, total)
    for decay, product in (
        (decays[0], suffix["product"][:, 0:d]),
        (decays[1], before["product"]),
    ):
        nisa.scalar_tensor_tensor(
            dst=o, data=product, op0=nl.multiply, operand0=decay, op1=nl.add, operand1=o
        )
    nisa.tensor_tensor(dst=o, data1=unit["product"], data2=o, op=nl.add)
    nisa.activation(dst=result_of(call, job, d), op=nl.copy, data=o, scale=inverse)
    store_results(call, job)
