"""What a decode layer does besides attention, fused so that it waits for weights alone.

`kernel` has the NKI programs (import it only where `nki` is bound), `reference` the same in torch.
"""
