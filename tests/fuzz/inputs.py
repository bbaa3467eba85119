"""What is drawn: a plain description of one use of the public calls, most of it sensible, some of it not."""

from __future__ import annotations

from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")


def mostly(sensible: list, odd: list) -> st.SearchStrategy:
    """Draw a sensible value 99 times out of 100: of some 30 values one is then odd in every fourth use.

    57 is no number that hypothesis likes better than others, and it shrinks to a sensible value.
    """
    return st.integers(0, 99).flatmap(lambda draw: st.sampled_from(odd if draw == 57 else sensible))


MESHES = st.fixed_dictionaries({
    "kind": st.sampled_from(["interval", "squares", "triangles", "sphere", "tetrahedra"]), "cells": st.integers(1, 4)})

PAIRS = [
    *[("residual", "euler")] * 4, ("residual", "heun"), ("residual", "backward"), ("residual", "midpoint"),
    ("antisymmetric", "euler"), ("antisymmetric", "heun"), ("parabolic", "euler"), ("parabolic", "heun"),
    ("hyperbolic", "euler"), ("hyperbolic", "verlet"), ("hamiltonian", "euler"), ("hamiltonian", "verlet"),
    ("reaction", "euler"), ("reaction", "imex"), ("reaction", "imex"), ("reaction", "backward")]
NETWORK = st.fixed_dictionaries({
    "basis": mostly(["low order", "low order", "stencils where they are", "two by name"], ["stencils"]),
    "T": mostly([0.1, 1.0, 3.0], [0, -1.0, NAN, INF, 1e300, "1", None]),
    "control cells": mostly([1, 2, 3], [0, -2, 2.5, None]),
    "features": mostly([1, 2, 3], [0, -1, 1.5, "2"]),
    "degree": mostly([0, 1], [2, -1]),
    "steps a cell": mostly([1, 1, 2], [0, 1.5, -1]),
    "activation": st.sampled_from(["tanh", "relu", "identity", "smoothed_relu"]),
    "dynamics and scheme": mostly(PAIRS, [
        ("residual", "imex"), ("residual", "verlet"), ("hyperbolic", "imex"), ("parabolic", "verlet")]),
    "precision": mostly(["double", "double", "single"], ["half", None]),
    "opening": mostly([None, None, None, 1], [3]),
})

SAMPLE = st.fixed_dictionaries({
    "count": mostly([1, 2, 5, 9], [0]), "pixels": mostly([1, 2, 3, 6], [0]),
    "channels": mostly([1, 1, 1, 1, 1, 1, 2], [0]),
    "dtype": mostly(["float64", "float32", "uint8", "bool"], ["complex128", "object", "str", "int64", "float16"]),
    "values": mostly(["noise", "noise", "constant", "large"], ["nan", "inf", "huge"]),
    "classes": mostly([1, 2, 3], [0, -1, 2.5]),
    "targets": st.sampled_from(["labels", "labels", "labels", "numbers", "classes at nodes", "fields"]),
    "mask": mostly([False, False, True], ["nothing"]),
    "source": st.sampled_from(["pixels", "pixels", "nodal"]),
    "labels": mostly(["good"], ["too large", "negative", "halves", "too few", "nested", "words"]),
})

PROBLEM = st.fixed_dictionaries({
    "readout cells": st.integers(1, 3),
    "readout": mostly(["CG", "CG", "state's", "DG"], ["R", "CG2", "vector"]),
    "loss": mostly(["default", "softmax", "least squares", "logistic"], ["word"]),
    "control_size": mostly([1e-3, 0.0, 1.0], [-1.0, NAN, INF]),
    "weights_size": mostly([1e-2, 1e-6], [0.0, -1.0, NAN]),
    "weights_gradient": mostly([0.0, 1e-2], [-1.0, INF]),
    "memory_limit": mostly([2**31, 2**20, 1], [0, -5]),
})

CALL = st.fixed_dictionaries({
    "name": st.sampled_from([
        "propagate", "propagate", "derivative", "derivative", "hessian", "train", "train", "drawn samples", "adam",
        "predict", "save", "carry", "finer", "depth", "multiscale"]),
    "scale": mostly([0.0, 0.1, 1.0], [30.0, 1e8, NAN, INF]),
    "iterations": mostly([0, 1, 2], [-1, 1.5, NAN]),
    "batch": mostly([1, 2, 4], [0, 100, -1, 1.5]),
    "rate": mostly([0.01, 1.0], [0.0, -1.0, NAN, 1e30]),
    "tolerance": mostly([0.5, 1e-2], [0.0, -1.0, NAN, 1e-14]),
    "seed": st.integers(0, 5),
})

USES = st.fixed_dictionaries(
    {"mesh": MESHES, "network": NETWORK, "sample": SAMPLE, "problem": PROBLEM, "call": CALL})
