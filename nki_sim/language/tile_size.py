"""``nl.tile_size``: the sizes a kernel plans its tiles with, for the generation simulated."""

from __future__ import annotations

from nki_sim.machine import current_or_none
from nki_sim.objects import NKIObject
from nki_sim.targets import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS, Target, get_target


class _TileSize(NKIObject):
    """Hardware tile sizes (nki.language.tile_size, NKI 0.6)."""

    _nki_native_ = True

    pmax: int = PARTITIONS
    psum_fmax: int = PSUM_BANK_BYTES // 4
    psum_bank_fmax: int = PSUM_BANK_BYTES // 4
    psum_bank_fmax_bytes: int = PSUM_BANK_BYTES
    gemm_stationary_fmax: int = 128
    gemm_moving_fmax: int = 512
    bn_stats_fmax: int = 512
    psum_min_align: int = 4
    sbuf_min_align: int = 1

    def __init__(self) -> None:
        pass

    @staticmethod
    def _target() -> Target:
        core = current_or_none()
        return core.target if core is not None else get_target()

    @property
    def psum_num_banks(self) -> int:
        """PSUM banks a kernel may use."""
        return PSUM_BANKS

    @property
    def sbuf_size_bytes(self) -> int:
        """SBUF of all partitions together, in bytes."""
        return self._target().sbuf_bytes_per_partition * PARTITIONS

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable SBUF of one partition, in bytes."""
        return self._target().sbuf_usable_bytes_per_partition

    @property
    def sbuf_fmax(self) -> int:
        """Usable SBUF of one partition, in float32 elements."""
        return self.sbuf_fmax_bytes // 4

    @property
    def total_available_sbuf_size(self) -> int:
        """As ``sbuf_fmax_bytes`` (deprecated name)."""
        return self.sbuf_fmax_bytes


tile_size = _TileSize()
