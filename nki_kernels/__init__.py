"""What runs on a NeuronCore: attention kernels in NKI, each beside the same mathematics in torch.

    from nki_kernels import bifurcated_attention, flash_attention

Importing this package binds neither `nki` nor the simulator; calling an operator with
kernels="nki", or on a Neuron device, does.
"""

from __future__ import annotations

from nki_kernels.errors import InputError
from nki_kernels.ordinary_attention.switch import decode_path
from nki_kernels.torch_ops import bifurcated_attention, flash_attention

__all__ = ["InputError", "bifurcated_attention", "decode_path", "flash_attention"]
