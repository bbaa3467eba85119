"""Sparse rows times fields, in every pair of precisions, against SciPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from firedrake import COMM_SELF

from ctrlnet.kernels.code.row_product import RowProduct

MATRIX = sp.random_array((7, 11), density=0.4, format="csr", rng=np.random.default_rng(0))


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("target", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (2, 40), (3, 64), (200,)])
def test_against_scipy(source, target, shape):
    """Widths below, at and past a register block; sums are double whatever the types."""
    x = np.random.default_rng(1).standard_normal((11, *shape)).astype(source)
    out = np.full((7, *shape), np.nan, dtype=target)
    assert RowProduct(MATRIX, source, target, COMM_SELF)(x, out) is out
    expected = (MATRIX @ x.reshape(11, -1).astype(float)).reshape(out.shape)
    np.testing.assert_allclose(out, expected, rtol=0, atol=4 * np.finfo(target).eps * np.abs(expected).max())


def test_a_matrix_without_rows_or_columns():
    """A rank that owns no node."""
    out = RowProduct(sp.csr_array((5, 0)), np.float64, np.float64, COMM_SELF)(np.ones((0, 3)), np.ones((5, 3)))
    assert (out == 0).all()
    empty = RowProduct(sp.csr_array((0, 5)), np.float64, np.float64, COMM_SELF)
    assert empty(np.ones((5, 3)), np.ones((0, 3))).size == 0


@pytest.mark.parametrize("x, out", [
    (np.ones((10, 3)), np.ones((7, 3))), (np.ones((11, 3)), np.ones((7, 2))), (np.ones((11, 3)), np.ones((6, 3))),
    (np.ones((11, 3), dtype=np.float32), np.ones((7, 3))), (np.ones((11, 3)), np.ones((7, 3), dtype=np.float32)),
])
def test_fields_that_do_not_fit(x, out):
    with pytest.raises(ValueError, match=r"A \(7, 11\) matrix from float64 to float64 cannot map"):
        RowProduct(MATRIX, np.float64, np.float64, COMM_SELF)(x, out)


def test_fields_that_are_not_contiguous():
    with pytest.raises(ValueError, match="needs contiguous arrays"):
        RowProduct(MATRIX, np.float64, np.float64, COMM_SELF)(np.ones((3, 11)).T, np.ones((7, 3)))
