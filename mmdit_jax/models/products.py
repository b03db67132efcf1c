"""Products of tokens and kernels in eight bits, forward and backward: int8, or fp8 (e4m3, gradients e5m2), by qwix.

Both operands are rounded as they come, symmetrically by their largest magnitude ("absmax"), with a scale for each row
of one and each column of the other, so that a product needs its scales only after its sums. Sums are int32 or float32:

- forward: x by token, kernel by output;
- gradient of x: the kernel's numbers of the forward pass; the gradient takes the kernel's scales, then is rounded by
  token;
- gradient of the kernel: the numbers of x of the forward pass, all that is kept of it; the gradient takes the scales of
  x, then is rounded by output over all tokens of the batch.

The rounding itself has gradient one. This is qwix's scheme for training (``qwix.QtProvider``), written as one function
because that provider rewrites whole modules, and keeps rounded kernels for the backward pass: of stacked blocks those
would be whole on every device.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmdit_jax.errors import UserError
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.sharding import batch_parts, current_mesh

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FORWARD = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
BACKWARD = {"int8": jnp.int8, "fp8": jnp.float8_e5m2}
"""Types of what is multiplied: of x and the kernel, and of the gradient that comes in."""
# Steps of a 127th of the largest number. By qwix's default, a 127.5th, that number is half-way between two, and the
# last bit of a division, which goes with how a program is compiled, would say which it becomes.
CALIBRATION = {"int8": f"absmax,{127.5 / 127}", "fp8": "absmax"}
RESULT, ROUNDED = "product", "rounded input"
"""Names of arrays for policies of rematerialisation."""


def check_products(config: MMDiTConfig) -> None:
    """Raises UserError where the config asks for products that need qwix, and it is not installed."""
    if config.products != "full":
        _qwix(config.products)


def _qwix(products: str) -> ModuleType:
    try:
        import qwix
    except ImportError:
        raise UserError(f"products={products!r}: needs qwix; pip install qwix") from None
    module: ModuleType = qwix
    return module


def product(
    x: Float[Array, "*rows features_in"], kernel: Float[Array, "features_in *count features_out"], products: str
) -> Float[Array, "*rows *count features_out"]:
    """x @ kernel by ``products`` ("int8", "fp8"), in the dtype of x."""
    return checkpoint_name(_product(x, kernel, products), RESULT)


def save_products(primitive: Any, *operands: Any, **parameters: Any) -> bool:
    """A policy for ``jax.checkpoint``: keep results of products with weights.

    Of eight-bit ones the result in the blocks' dtype, not the wider sums that it is made from.
    """
    if primitive.name == "name":
        return bool(parameters["name"] == RESULT)
    if primitive.name == "dot_general" and all(operand.dtype.itemsize == 1 for operand in operands):
        return False
    return bool(jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *operands, **parameters))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, products: str) -> jax.Array:
    return _forward(x, kernel, products)[0]


def _rounded(array: jax.Array, type_: Any, axes: range, products: str) -> Any:
    """A ``qwix.QArray`` with a float32 scale for each index of ``axes``, the other axes' size being 1."""
    return _qwix(products).quantize(
        array.astype(jnp.float32), type_, channelwise_axes=tuple(axes), calibration_method=CALIBRATION[products]
    )


Kept = tuple[jax.Array, jax.Array, jax.Array]
"""For the backward pass: of x the rounded numbers, as bits, and the scales; the kernel."""


def _forward(x: jax.Array, kernel: jax.Array, products: str) -> tuple[jax.Array, Kept]:
    rows = x.ndim - 1
    left = _rounded(x, FORWARD[products], range(rows), products)
    right = _rounded(kernel, FORWARD[products], range(1, kernel.ndim), products)
    out = _qwix(products).dot_general(left, right, (((rows,), (0,)), ((), ())))
    # As bits: jax.checkpoint passes the floats that it keeps through reduce_precision, which knows no e4m3 beyond 240
    # and makes NaN of them.
    bits = jax.lax.bitcast_convert_type(left.qvalue, jnp.int8)
    return out.astype(x.dtype), (checkpoint_name(bits, ROUNDED), checkpoint_name(left.scale, ROUNDED), kernel)


def _backward(products: str, kept: Kept, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits, scale, kernel = kept
    left = jax.lax.bitcast_convert_type(bits, FORWARD[products])
    rows, columns = left.ndim - 1, kernel.ndim - 1
    wide, dot = gradient.astype(jnp.float32), _qwix(products).dot_general
    right = _rounded(kernel, FORWARD[products], range(1, kernel.ndim), products)

    by_row = _rounded(wide * right.scale[0], BACKWARD[products], range(rows), products)
    outputs = tuple(range(rows, rows + columns)), tuple(range(1, kernel.ndim))
    x_gradient = dot(by_row, right.qvalue, (outputs, ((), ())))

    scale = scale.reshape(*scale.shape[:-1], *(1,) * columns)
    by_column = _rounded(wide * scale, BACKWARD[products], range(rows, rows + columns), products)
    # A sum for each part of the batch that lies on devices of its own, and these added up in the kernel's dtype, as
    # those of full products are: int32 would be twice as much to send, and hold 2^17 tokens at the worst.
    mesh = current_mesh()
    parts = 1 if mesh is None or len(gradient) % batch_parts(mesh) else batch_parts(mesh)
    split = jax.tree.map(lambda leaf: _split(leaf, parts), by_column)
    tokens = tuple(range(1, rows + 1))
    sums = dot(_split(left, parts), split, ((tokens, tokens), ((0,), (0,))))
    # Not jnp.sum: it would add in float32, which XLA can't turn into a reduce-scatter of the result.
    kernel_gradient = jax.lax.reduce(sums.astype(kernel.dtype), jnp.zeros((), kernel.dtype), jax.lax.add, (0,))
    return x_gradient.astype(gradient.dtype), kernel_gradient


def _split(array: jax.Array, parts: int) -> jax.Array:
    """The first axis in ``parts``, a new axis; one of size 1 is every part's."""
    if len(array) == 1:
        return array[None]
    return array.reshape(parts, len(array) // parts, *array.shape[1:])


_product.defvjp(_forward, _backward)
