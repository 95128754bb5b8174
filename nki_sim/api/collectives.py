"""Collective communication between devices: the signatures; the simulator has none of it yet."""

from __future__ import annotations

from typing import Any, NoReturn

from nki_sim.objects import NKIObject


class ReplicaGroup(NKIObject):
    """Groups of ranks that take part in a collective, as lists of ranks."""

    groups: Any = None


def _missing(name: str) -> NoReturn:
    raise NotImplementedError(f"nki.collectives.{name}")


def all_gather(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: Any,
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """Concatenate the tensors of the ranks of each group."""
    _missing("all_gather")


def all_gather_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata_tensor: Any,
    recv_counts_known: Any = False,
    has_rdispls: Any = False,
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """``all_gather`` with a length per rank."""
    _missing("all_gather_v")


def all_reduce(
    srcs: Any, dsts: Any, replica_group: Any, op: Any, priority: Any = None, name: Any = None
) -> NoReturn:
    """Reduce over the ranks of each group; every rank gets the result."""
    _missing("all_reduce")


def all_to_all(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: Any,
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """Each rank sends one part to every other."""
    _missing("all_to_all")


def all_to_all_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata_tensor: Any,
    recv_counts_known: Any = False,
    has_rdispls: Any = False,
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """``all_to_all`` with a length per pair of ranks."""
    _missing("all_to_all_v")


def collective_permute(
    srcs: Any, dsts: Any, source_target_pairs: Any, priority: Any = None, name: Any = None
) -> NoReturn:
    """Send along (source, target) pairs."""
    _missing("collective_permute")


def collective_permute_implicit(
    srcs_by_channel: Any,
    dsts_by_channel: Any,
    replica_group: Any,
    channel_ids: Any = [0],  # noqa: B006 - the published default
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """Send to the next rank of a ring."""
    _missing("collective_permute_implicit")


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: Any, replica_group: Any, channel_id: Any = 0, name: Any = None
) -> NoReturn:
    """The rank whose data is held at this step of a ring."""
    _missing("collective_permute_implicit_current_processing_rank_id")


def collective_permute_implicit_reduce(
    srcs0_by_channel: Any,
    srcs1_by_channel: Any,
    dsts_by_channel: Any,
    replica_group: Any,
    op: Any,
    channel_ids: Any = [0],  # noqa: B006 - the published default
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """Combine two tensors and send to the next rank of a ring."""
    _missing("collective_permute_implicit_reduce")


def rank_id(name: Any = None) -> NoReturn:
    """This rank."""
    _missing("rank_id")


def reduce_scatter(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: Any,
    op: Any,
    priority: Any = None,
    name: Any = None,
) -> NoReturn:
    """Reduce over the ranks, each rank keeping its part."""
    _missing("reduce_scatter")
