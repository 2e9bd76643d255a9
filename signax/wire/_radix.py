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

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from signax.wire import _bits, _contiguous

# More planes of digits in a number save a few hundredths of a bit, and take several times as long.
_MOST_PLANES = 15

Planes = Sequence[jax.Array]  # of integers, the least significant bit first


def bits_per_value(radix: int) -> float:
    """What a value, one of `radix`, takes: 1.6 bits of three, 3.33 of nine, 3 of eight."""
    digits = _num_digits(radix)
    return _num_bits(radix**digits) / digits


def encode(planes: Planes, radix: int) -> list[jax.Array]:
    """The planes of values below `radix`, uint8[..., S] each -> those of numbers, [..., V]."""
    num_digits, size = _num_digits(radix), planes[0].shape[-1]
    if num_digits == 1:
        return list(planes)
    part = -(-size // num_digits)
    padding = [(0, 0)] * (planes[0].ndim - 1) + [(0, num_digits * part - size)]
    planes = [jnp.pad(plane, padding) for plane in planes]
    weights: list[list[jax.Array]] = [[] for _ in range(_num_bits(radix**num_digits))]
    for k in range(num_digits):
        digit = [plane[..., k * part : (k + 1) * part] for plane in planes]
        for shift in _set_bits(radix**k):
            for i, plane in enumerate(digit):
                weights[i + shift].append(plane)
    return _bits.add_planes(weights)[: len(weights)]


def decode(numbers: Planes, radix: int, size: int) -> list[jax.Array]:
    """The inverse, of rows: uint8[M, V] each -> uint8[M, S]."""
    num_digits, part = _num_digits(radix), numbers[0].shape[1]
    if num_digits == 1:
        return list(numbers)
    digits, rest = [], list(numbers)
    for k in reversed(range(1, num_digits)):
        digit, rest = _divide(rest, radix, radix**k)
        digits.insert(0, digit)
    digits.insert(0, rest)
    # The last parts hold the padding, if there is any.
    sizes = [min(max(size - k * part, 0), part) for k in range(num_digits)]
    parts = zip(*digits, strict=True)
    return [
        _contiguous.side_by_side([x[:, :n] for x, n in zip(plane, sizes, strict=True)])
        for plane in parts
    ]


def _num_digits(radix: int) -> int:
    """How many values a number holds: of all that are cheap enough, what takes the fewest bits."""
    most = max(1, _MOST_PLANES // _num_bits(radix))
    return min(range(1, most + 1), key=lambda k: (_num_bits(radix**k) / k, k))


def _divide(numbers: Planes, radix: int, divisor: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """The quotient, which is below `radix`, and the remainder of a constant divisor."""
    largest, quotient = radix * divisor - 1, []
    rest = list(numbers)
    for i in reversed(range(_num_bits(radix))):
        multiple = divisor << i
        difference, is_less = _subtract(rest, multiple)
        quotient.insert(0, ~is_less)
        rest = [(x & is_less) | (y & ~is_less) for x, y in zip(rest, difference, strict=True)]
        largest = max(multiple - 1, largest - multiple)
        rest = rest[: largest.bit_length()]
    return quotient, rest


def _subtract(numbers: Planes, constant: int) -> tuple[list[jax.Array], jax.Array]:
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


def _set_bits(number: int) -> list[int]:
    return [i for i in range(number.bit_length()) if number >> i & 1]
