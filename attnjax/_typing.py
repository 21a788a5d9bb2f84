"""Axis letters and scalar aliases, defined once.

B  batch (any number of leading axes)      K  key/value heads (N is a multiple of K)
T  queries                                 H  head dimension of queries and keys
S  keys                                    V  head dimension of values
N  query heads                             D  model dimension
"""

from jaxtyping import Array, Float

FloatScalar = float | int | Float[Array, ""]
"""A real number: Python's, or a JAX scalar (traced or not)."""
PerHead = float | int | Float[Array, ""] | Float[Array, " N"]
"""One number for all query heads, or one for each."""
