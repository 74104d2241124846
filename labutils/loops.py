"""The compiled part of `labutils.fused`, where its method is explained: numba turns this file into machine code.

Everything lies in one flat array `h`: row r, the values of one unit for the n examples of a block, is h[r n : (r+1) n].
n is padded to whole vectors; what stands in the padding never reaches a gradient, since its deltas are 0.

numba has no vectors of its own: the first part of the file adds them, a type and five operations. With them, the loops
below keep eight sums in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

VECTOR_BYTES = 32  # AVX2's; LLVM makes two halves of it where the registers are smaller
# What fastmath may change: the order of sums, a multiplication and an addition rounded once. Not NaN and infinity,
# by which a training that diverges is known.
RELAXED = ("reassoc", "contract", "arcp", "nsz")
KINDS = ("dense", "leaky relu", "tanh", "tanh32", "sigmoid", "softplus", "gelu")  # what a stage may compute
DENSE, LEAKY, TANH, TANH32, SIGMOID, SOFTPLUS, GELU = range(len(KINDS))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, and keep the result on the disk where there is a place for it."""
    options: dict[str, Any] = {"nogil": True, "fastmath": set(RELAXED), "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's can be written to: every process compiles for itself
        return njit(**options)(function)


class Vector(types.Type):
    """numba's name for a vector of numbers of one type."""

    def __init__(self, dtype: types.Float) -> None:
        super().__init__(name=f"Vector({dtype})")
        self.dtype, self.lanes = dtype, VECTOR_BYTES * 8 // dtype.bitwidth


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.lanes))


def _pointer(context: Any, builder: Any, array: types.Array, values: Any, index: Any) -> Any:
    data = context.make_array(array)(context, builder, values).data
    return builder.bitcast(builder.gep(data, [index]), context.get_value_type(Vector(array.dtype)).as_pointer())


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Return the vector that begins at array[index]."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, array, *args), align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), code


@intrinsic
def store(_: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to array[index] and what follows."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, array, *args[:2]), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def spread(_: Any, number: Any) -> Any:
    """Return a vector that has one number in all places."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = context.get_value_type(signature.return_type)
        places = ir.VectorType(ir.IntType(32), vector.count)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, first, ir.Constant(places, [0] * vector.count))

    return Vector(number)(number), code


@intrinsic
def add_product(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, place by place."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(builder.fmul(args[0], args[1], flags=RELAXED), args[2], flags=RELAXED)

    return a(a, b, c), code


@intrinsic
def total(_: Any, vector: Any) -> Any:
    """Return the sum of a vector's numbers."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = context.get_value_type(vector)
        kind = ir.FunctionType(whole.element, [whole.element, whole])
        name = f"llvm.vector.reduce.fadd.v{whole.count}f{vector.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [ir.Constant(whole.element, 0.0), args[0]], fastmath=RELAXED)

    return vector.dtype(vector), code


@_compiled
def multiply(h, to, w, at, down, right, start, rows, columns, source, n):
    """Compute h[to + r] = start[r] + Σ_c W[r, c] h[source + c] for all rows, where W[r, c] = w[at + r down + c right].

    Two rows at a time and four vectors of each: what is loaded serves four times or twice. An odd last row is done
    twice, which costs less than a case of its own.
    """
    lanes = VECTOR_BYTES // h.itemsize
    for r in range(0, rows, 2):
        q = min(r + 1, rows - 1)
        at_r, at_q, to_r, to_q = at + r * down, at + q * down, (to + r) * n, (to + q) * n
        start_r, start_q = spread(start[r]), spread(start[q])
        e = 0
        while e + 4 * lanes <= n:
            r0 = r1 = r2 = r3 = start_r
            q0 = q1 = q2 = q3 = start_q
            for c in range(columns):
                i = (source + c) * n + e
                x0, x1 = load(h, i), load(h, i + lanes)
                x2, x3 = load(h, i + 2 * lanes), load(h, i + 3 * lanes)
                u, v = spread(w[at_r + c * right]), spread(w[at_q + c * right])
                r0, r1 = add_product(u, x0, r0), add_product(u, x1, r1)
                r2, r3 = add_product(u, x2, r2), add_product(u, x3, r3)
                q0, q1 = add_product(v, x0, q0), add_product(v, x1, q1)
                q2, q3 = add_product(v, x2, q2), add_product(v, x3, q3)
            store(h, to_r + e, r0)
            store(h, to_r + e + lanes, r1)
            store(h, to_r + e + 2 * lanes, r2)
            store(h, to_r + e + 3 * lanes, r3)
            store(h, to_q + e, q0)
            store(h, to_q + e + lanes, q1)
            store(h, to_q + e + 2 * lanes, q2)
            store(h, to_q + e + 3 * lanes, q3)
            e += 4 * lanes
        while e < n:
            r0, q0 = start_r, start_q
            for c in range(columns):
                x0 = load(h, (source + c) * n + e)
                r0 = add_product(spread(w[at_r + c * right]), x0, r0)
                q0 = add_product(spread(w[at_q + c * right]), x0, q0)
            store(h, to_r + e, r0)
            store(h, to_q + e, q0)
            e += lanes


@_compiled
def correlate(g, at, down, right, h, first, rows, second, columns, n):
    """Add Σ_e h[first + r, e] h[second + c, e] to g[at + r down + c right]; two rows and four columns at a time."""
    lanes = VECTOR_BYTES // h.itemsize
    zero = spread(h.dtype.type(0))
    for r in range(0, rows, 2):
        q = min(r + 1, rows - 1)
        for c in range(0, columns, 4):
            last = columns - 1 - c  # columns beyond the last one are the last one again, and not added
            r0 = r1 = r2 = r3 = q0 = q1 = q2 = q3 = zero
            i, j, k = (first + r) * n, (first + q) * n, (second + c) * n
            k1, k2, k3 = min(1, last) * n, min(2, last) * n, min(3, last) * n
            for e in range(0, n, lanes):
                u, v = load(h, i + e), load(h, j + e)
                x0, x1, x2, x3 = load(h, k + e), load(h, k + k1 + e), load(h, k + k2 + e), load(h, k + k3 + e)
                r0, r1 = add_product(u, x0, r0), add_product(u, x1, r1)
                r2, r3 = add_product(u, x2, r2), add_product(u, x3, r3)
                q0, q1 = add_product(v, x0, q0), add_product(v, x1, q1)
                q2, q3 = add_product(v, x2, q2), add_product(v, x3, q3)
            sums_r = total(r0), total(r1), total(r2), total(r3)
            sums_q = total(q0), total(q1), total(q2), total(q3)
            for s in range(min(4, last + 1)):
                g[at + r * down + (c + s) * right] += sums_r[s]
                if q > r:
                    g[at + q * down + (c + s) * right] += sums_q[s]


@_compiled
def activate(z, h, kind, parameter):
    """Write f(z) to h, and f'(z), which is all that the way back needs, in the place of z."""
    number = h.dtype.type
    one, a = number(1), number(parameter)
    if kind == LEAKY:
        for i in range(len(h)):
            slope = a if z[i] <= 0 else one  # one for NaN, too: it must be seen at the end
            h[i], z[i] = z[i] * slope, slope
    elif kind == TANH:
        for i in range(len(h)):
            h[i] = math.tanh(z[i])
            z[i] = one - h[i] * h[i]
    elif kind == TANH32:
        for i in range(len(h)):
            h[i] = tanh32(z[i])
            z[i] = one - h[i] * h[i]
    elif kind == SIGMOID:
        for i in range(len(h)):
            h[i] = one / (one + math.exp(-z[i]))
            z[i] = h[i] * (one - h[i])
    elif kind == SOFTPLUS:
        for i in range(len(h)):
            power = math.exp(min(a * z[i], number(20)))
            h[i] = z[i] if a * z[i] > 20 else math.log1p(power) / a
            z[i] = one if a * z[i] > 20 else power / (one + power)
    elif kind == GELU:
        for i in range(len(h)):
            x, share = z[i], number(0.5) * (one + math.erf(z[i] * number(math.sqrt(0.5))))
            h[i] = x * share
            z[i] = share + x * number(1 / math.sqrt(2 * math.pi)) * math.exp(number(-0.5) * x * x)


@_compiled
def tanh32(z):
    """Return tanh(z) to about float32's precision, as a quotient of polynomials: 4 to 8 numbers at once, unlike tanh.

    The coefficients are those of Eigen, and so of JAX and TensorFlow, too.
    """
    limit = np.float32(7.90531110763549805)  # from here on it is 1 in float32
    z = -limit if z < -limit else limit if z > limit else z
    s = z * z
    p = s * np.float32(-2.76076847742355e-16) + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = s * np.float32(1.19825839466702e-06) + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return z * p / q


@_compiled
def compare(h, outputs, delta, classes, n, m, labels, targets, cross_entropy, scale):
    """Write the derivatives of scale × the m examples' loss by the outputs to rows delta...; 0 to the padding.

    Returns the sum of their losses, and how many are classified correctly.
    """
    loss, correct = 0.0, 0
    for e in range(m):
        label = labels[e] if len(labels) > 0 else -1
        top = 0
        for c in range(1, classes):
            if h[(outputs + c) * n + e] > h[(outputs + top) * n + e]:
                top = c
        correct += top == label
        highest, powers = h[(outputs + top) * n + e], 0.0
        for c in range(classes):
            output = h[(outputs + c) * n + e]
            if cross_entropy:
                change = math.exp(output - highest)
                powers += change
            else:
                change = output - (targets[e, c] if label < 0 else targets.dtype.type(c == label))
                loss += change * change
            h[(delta + c) * n + e] = change * scale
        if cross_entropy:
            loss += math.log(powers) + highest - h[(outputs + label) * n + e]
            for c in range(classes):
                h[(delta + c) * n + e] /= powers
            h[(delta + label) * n + e] -= scale
    for c in range(classes):
        h[(delta + c) * n + m : (delta + c + 1) * n] = 0
    return loss, correct


@_compiled
def sum_rows(g, h, first, rows, n):
    """Add the sums of rows to g."""
    for r in range(rows):
        row, value = h[(first + r) * n : (first + r + 1) * n], h.dtype.type(0)
        for e in range(n):
            value += row[e]
        g[r] += value


@_compiled
def scale_by(a, b):
    """Multiply a by b in place, number by number."""
    for i in range(len(a)):
        a[i] *= b[i]


@_compiled
def run(
    weights, step, gradients, gradients_step, x, labels, targets, outputs, losses, correct, table, settings,
    cross_entropy, networks, parameters, h, zeros, block,
):  # fmt: skip
    """Compute losses and gradients of all networks; or outputs only, where there is a place for these.

    Network k's weights begin at weights[k step], its gradient at gradients[k gradients_step]. Of x, labels and targets
    there is one for all, or one for each network. Labels may be missing (of length 0).
    """
    number, lanes = x.dtype.type, VECTOR_BYTES // x.itemsize
    examples, features, classes = x.shape[1], x.shape[2], table[-1, 2]
    end, one = table[-1, 5] + table[-1, 1], np.int64(1)  # a plain 1 would have functions compiled for it alone
    for k in range(networks):
        w, own_x = weights[k * step : k * step + parameters], x[k if len(x) > 1 else 0]
        own_labels, own_targets = labels[k if len(labels) > 1 else 0], targets[k if len(targets) > 1 else 0]
        loss, hits = 0.0, 0
        for first in range(0, examples, block):
            m = min(block, examples - first)  # examples, and the same up to whole vectors
            n = (m + lanes - 1) // lanes * lanes
            for f in range(features):
                for e in range(m):
                    h[f * n + e] = own_x[first + e, f]
                h[f * n + m : (f + 1) * n] = 0
            for s in range(len(table)):
                kind, before, after, at, bias, row = table[s]
                if kind == DENSE:
                    start = w[bias : bias + after] if bias >= 0 else zeros
                    multiply(h, row + before, w, at, before, one, start, after, before, row, n)
                else:
                    to = row + before
                    activate(h[row * n : to * n], h[to * n : (to + after) * n], kind, settings[s])
            if len(outputs) > 0:
                for e in range(m):
                    for c in range(classes):
                        outputs[k, first + e, c] = h[(end + c) * n + e]
                continue
            delta, other = end + classes, end + classes + len(zeros)
            part, right = compare(
                h, end, delta, classes, n, m, own_labels[first : first + m], own_targets[first : first + m],
                cross_entropy, number((1 if cross_entropy else 2 / classes) / examples),
            )  # fmt: skip
            loss, hits = loss + part, hits + right
            g = gradients[k * gradients_step : k * gradients_step + parameters]
            if first == 0:
                g[:] = 0
            for s in range(len(table) - 1, -1, -1):
                kind, before, after, at, bias, row = table[s]
                if kind != DENSE:
                    scale_by(h[delta * n : (delta + after) * n], h[row * n : (row + before) * n])
                    continue
                if bias >= 0:
                    sum_rows(g[bias : bias + after], h, delta, after, n)
                if before > 1:
                    correlate(g, at, before, one, h, delta, after, row, before, n)
                else:
                    correlate(g, at, one, before, h, row, before, delta, after, n)
                if s > 0:
                    multiply(h, other, w, at, one, before, zeros, before, after, delta, n)
                    delta, other = other, delta
        if len(outputs) == 0:
            losses[k] = loss / (examples if cross_entropy else examples * classes)
            if len(own_labels) > 0:
                correct[k] = hits / examples
