"""A hand-written C loop that packs signs, to hold the compiled form against.

It reads 64 coordinates and writes 8 bytes at a time with the widest comparison that this machine
has (AVX-512, AVX2, or plain C), on as many threads as XLA uses. It is compiled where a C compiler
is found, and left out where none is.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

_SOURCE = r"""
#include <stdint.h>
#include <stddef.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

static inline uint64_t pack_64(const float *g) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  for (int i = 0; i < 4; i++)
    word |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(g + 16 * i), _mm512_setzero_ps(),
                                         _CMP_GT_OQ) << (16 * i);
#elif defined(__AVX2__)
  for (int i = 0; i < 8; i++)
    word |= (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(g + 8 * i),
                                         _mm256_setzero_ps(), _CMP_GT_OQ)) << (8 * i);
#else
  for (int i = 0; i < 64; i++) word |= (uint64_t)(g[i] > 0) << i;
#endif
  return word;
}

void pack_signs(const float *g, uint64_t *words, ptrdiff_t num_words) {
  #pragma omp parallel for schedule(static)
  for (ptrdiff_t i = 0; i < num_words; i++) words[i] = pack_64(g + 64 * i);
}
"""
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-x", "c", "-")


def packing(g: jax.Array) -> Callable[[], np.ndarray] | None:
    """A call that packs the signs of `g` (whole words of 64); None without a compiler."""
    pack = _compiled()
    if pack is None:
        return None
    values, words = np.asarray(g), np.zeros(g.size // 64, np.uint64)

    def call() -> np.ndarray:
        pack(values.ctypes.data, words.ctypes.data, words.size)
        return words

    return call


def _compiled() -> Callable[..., None] | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="signax-bench-") as folder:
        library = Path(folder) / "pack.so"
        command = [compiler, *_FLAGS, "-o", str(library)]
        done = subprocess.run(command, input=_SOURCE, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        # Its threads spin for a fraction of a millisecond, enough for each other at the end of the
        # loop; GNU's milliseconds would take the cores from whoever is measured next.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        # Once loaded, the library needs its file no more.
        pack = ctypes.CDLL(str(library)).pack_signs
    pack.argtypes, pack.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t), None
    return pack
