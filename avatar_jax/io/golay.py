"""The extended Golay code over four blocks: 32 bits and their check become 96, read back from doubtful bits.

A block of 12 bits becomes 24 of which any two words differ in at least 8 places, so 3 wrong bits are always mended;
a soft decision mends more. All 4096 words are compared at once, the exact most likely one is taken.
"""

import binascii
import functools

import numpy as np

GENERATOR = 0xC75  # x^11 + x^10 + x^6 + x^5 + x^4 + x^2 + 1 divides x^23 + 1: the cyclic code of 23 bits
DATA, WORD = 12, 24  # bits of a block before and after
BLOCKS = 4
BITS = BLOCKS * WORD  # 96 coded bits
_PAYLOAD_BYTES, _CHECK_BYTES = 4, 2
PAYLOADS = 1 << (8 * _PAYLOAD_BYTES)


def _encode(data: int) -> int:
    """The systematic word of 12 bits: data, 11 bits of remainder, the parity of all."""
    rest = data << 11
    for shift in range(DATA - 1, -1, -1):
        if rest >> (shift + 11) & 1:
            rest ^= GENERATOR << shift
    word = data << 11 | rest
    return word << 1 | word.bit_count() % 2


@functools.cache
def words() -> np.ndarray:  # [4096, 24] of ±1
    """Every word of the code; a bit of 1 is -1."""
    bits = np.array([[_encode(data) >> place & 1 for place in range(WORD - 1, -1, -1)] for data in range(1 << DATA)])
    return (1 - 2 * bits).astype(np.float32)


def encode(payload: int) -> np.ndarray:  # [96] of ±1
    """The coded bits of a payload of 32 bits. Raises ValueError outside of 0..2^32 - 1."""
    if not 0 <= payload < PAYLOADS:
        raise ValueError(f"payload {payload}: must be a number of 32 bits, 0 to {PAYLOADS - 1}")
    said = payload.to_bytes(_PAYLOAD_BYTES, "big")
    whole = int.from_bytes(said + binascii.crc_hqx(said, 0).to_bytes(_CHECK_BYTES, "big"), "big")
    blocks = [whole >> DATA * place & (1 << DATA) - 1 for place in range(BLOCKS - 1, -1, -1)]
    return words()[blocks].reshape(-1)


def decode(soft: np.ndarray) -> int | None:
    """The payload of doubtful bits [96], positive where +1 is likelier; None where the check does not fit."""
    blocks = (soft.reshape(BLOCKS, WORD) @ words().T).argmax(-1)
    whole = functools.reduce(lambda sum, block: sum << DATA | int(block), blocks, 0)
    said = whole.to_bytes(_PAYLOAD_BYTES + _CHECK_BYTES, "big")
    check = int.from_bytes(said[_PAYLOAD_BYTES:], "big")
    return int.from_bytes(said[:_PAYLOAD_BYTES], "big") if binascii.crc_hqx(said[:_PAYLOAD_BYTES], 0) == check else None
