"""Several values in one number, where a value is one of b and b is no power of two.

Planes spend ceil(log2 b) bits on each value: two for -1, 0, +1, and four for a count of eight
workers, 0 to 8. As digits in radix b, K values are one number below b^K, of ceil(K log2 b) bits:
five signs in 8 bits, three such counts in 10. Digit k is from the k-th part of the words:

    words    | part 0 | part 1 | part 2 |  S words           x = digit 0 + 9 digit 1 + 81 digit 2,
                 |        |        |                         10 planes of S / 3 words
              digit 0  digit 1  digit 2                      in place of 4 planes of S

Numbers are planes too, so nothing is unpacked: multiplying by a constant is to add shifted copies,
and digits are found as in school, the highest first, by subtracting b^k 2^i wherever it fits
(restoring division). One logical instruction on 32 bytes works on 256 numbers.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from signax.wire import _bits, _contiguous

# In the planes of one number's digits, but for two digits. Larger numbers save little (with eight
# workers 0.13 of 3.33 bits) and take several times as long.
_MOST_PLANES = 15


def bits_per_value(radix: int) -> float:
    """Bits for each of many values below `radix`: 1.6 for three, 3.33 for nine, 3 for eight."""
    num_digits = digits_in_number(radix)
    return _num_bits(radix**num_digits) / num_digits


def encode(planes: _bits.Planes, radix: int) -> list[jax.Array]:
    """Planes of S words, of values below `radix` -> planes of V = ceil(S / K), of numbers.

    One row of words, uint8[S], or M of them.
    """
    num_digits, size = digits_in_number(radix), planes[0].shape[-1]
    if num_digits == 1:
        return list(planes)
    part = -(-size // num_digits)
    padding = [(0, 0)] * (planes[0].ndim - 1) + [(0, num_digits * part - size)]
    planes = [jnp.pad(plane, padding) for plane in planes]
    digits = [[x[..., k * part : (k + 1) * part] for x in planes] for k in range(num_digits)]
    numbers = functools.partial(_numbers, radix=radix)
    return jax.lax.map(numbers, digits) if planes[0].ndim == 2 else numbers(digits)


def decode(numbers: _bits.Planes, radix: int, size: int) -> list[jax.Array]:
    """The inverse, of rows: planes uint8[M, V] -> uint8[M, S]."""
    num_digits, part = digits_in_number(radix), numbers[0].shape[1]
    if num_digits == 1:
        return list(numbers)
    # A loop over the rows is one program for all, and what comes out of it is in memory: XLA would
    # divide again for each plane of each digit of each row. Two planes are one word there.
    pairs = jax.lax.map(functools.partial(_paired_digits, radix=radix), list(numbers))
    planes = [(pair >> shift).astype(jnp.uint8) for pair in pairs for shift in (0, 8)]
    # The last parts hold the padding, if there is any.
    sizes = [min(max(size - k * part, 0), part) for k in range(num_digits)]
    num_bits = _num_bits(radix)
    return [
        _contiguous.side_by_side([planes[k * num_bits + i][:, :n] for k, n in enumerate(sizes)])
        for i in range(num_bits)
    ]


def digits_in_number(radix: int) -> int:
    """How many values a number holds: of all that are cheap enough, what takes the fewest bits."""
    most = max(2, _MOST_PLANES // _num_bits(radix))
    return min(range(1, most + 1), key=lambda k: (_num_bits(radix**k) / k, k))


def _numbers(digits: Sequence[_bits.Planes], radix: int) -> list[jax.Array]:
    """sum_k digit_k radix^k."""
    weights: list[list[jax.Array]] = [[] for _ in range(_num_bits(radix ** len(digits)))]
    for k, digit in enumerate(digits):
        for shift in _powers_of_two_in(radix**k):
            for i, plane in enumerate(digit):
                weights[i + shift].append(plane)
    return _bits.add_planes(weights)[: len(weights)]


def _paired_digits(numbers: _bits.Planes, radix: int) -> list[jax.Array]:
    """The planes of digit 0, digit 1, ... as the low and the high byte of words, two in each."""
    planes, rest = [], list(numbers)
    for k in reversed(range(1, digits_in_number(radix))):
        digit, rest = _divide(rest, radix, radix**k)
        planes = [*digit, *planes]
    planes = [plane.astype(jnp.uint16) for plane in [*rest, *planes]]
    if len(planes) % 2:
        planes.append(jnp.zeros_like(planes[0]))
    return [low | high << 8 for low, high in zip(planes[::2], planes[1::2], strict=True)]


def _divide(
    numbers: _bits.Planes, radix: int, divisor: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The quotient, which is below `radix`, and the remainder of a constant divisor."""
    largest, quotient = radix * divisor - 1, []
    rest = list(numbers)
    for i in reversed(range(_num_bits(radix))):
        multiple = divisor << i  # rest < 2 * multiple: it has all the bits of the constant
        difference, is_less = _subtract(rest, multiple)
        quotient.insert(0, ~is_less)
        rest = [(x & is_less) | (y & ~is_less) for x, y in zip(rest, difference, strict=True)]
        largest = max(multiple - 1, largest - multiple)
        rest = rest[: largest.bit_length()]
    return quotient, rest


def _subtract(numbers: _bits.Planes, constant: int) -> tuple[list[jax.Array], jax.Array]:
    """`numbers - constant`, and where it is negative: a ripple of borrows, from the lowest bit."""
    borrow = jnp.zeros_like(numbers[0])
    difference = []
    for i, x in enumerate(numbers):
        if constant >> i & 1:
            difference.append(~(x ^ borrow))
            borrow = ~x | borrow
        else:
            difference.append(x ^ borrow)
            borrow = ~x & borrow
    return difference, borrow


def _num_bits(values: int) -> int:
    """What one of so many values takes."""
    return (values - 1).bit_length()


def _powers_of_two_in(number: int) -> list[int]:
    return [i for i in range(number.bit_length()) if number >> i & 1]
