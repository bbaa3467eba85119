"""TAO options of the methods: dictionaries to pass on, or to override entry by entry.

=================  =========================================================================================
preset             method
=================  =========================================================================================
QUASI_NEWTON       ``lmvm``: L-BFGS, More-Thuente line search. The initial Hessian is the driver's.
CONJUGATE_GRADIENT ``cg``: Polak-Ribiere-Polyak nonlinear conjugate gradients
TRUST_REGION       ``ntr``: Newton, Steihaug's conjugate gradients inside a trust region of the metric's norm
LINE_SEARCH        ``nls``: Newton, truncated conjugate gradients, More-Thuente line search
=================  =========================================================================================

=======================================  ==================================================================
option                                   meaning
=======================================  ==================================================================
``tao_type``                             any unconstrained TAO method, also ``ntl``, ``bntr``, ``bqnls``
``tao_ls_type``, ``tao_ls_max_funcs``    line search
``tao_lmvm_mat_lmvm_hist_size``          secant pairs
``tao_lmvm_recycle``                     keep them from one drawn sample to the next
``tao_ntr_ksp_type`` (``nls``, ``ntl``)  ``stcg``, ``nash``, ``gltr``
``tao_ntr_ksp_max_it``                   most Krylov iterations a step
``tao_ntr_init_type``                    first radius: ``constant`` (``tao_trust0``), ``direction``
=======================================  ==================================================================

Limits and tolerances are the driver's arguments, the relative residual of Krylov solves among them: TAO's own
choices (Eisenstat and Walker's) give way to ``forcing``, a number or a function of the relative gradient norm r such
as ``lambda r: min(0.5, r**0.5)``. ``-tao_monitor``, ``-tao_view`` and the like work as usual.
"""

from __future__ import annotations

__all__ = ["CONJUGATE_GRADIENT", "LINE_SEARCH", "QUASI_NEWTON", "TRUST_REGION"]

_LINE_SEARCH = {"tao_ls_type": "more-thuente", "tao_ls_max_funcs": 20}

QUASI_NEWTON = {"tao_type": "lmvm", "tao_lmvm_mat_lmvm_hist_size": 30, "tao_lmvm_recycle": True, **_LINE_SEARCH}

CONJUGATE_GRADIENT = {"tao_type": "cg", "tao_cg_type": "prp", **_LINE_SEARCH}

TRUST_REGION = {
    "tao_type": "ntr", "tao_ntr_init_type": "direction", "tao_ntr_ksp_type": "stcg", "tao_ntr_ksp_max_it": 50,
    "tao_ntr_ksp_norm_type": "natural",
}

LINE_SEARCH = {
    "tao_type": "nls", "tao_nls_init_type": "direction", "tao_nls_ksp_type": "stcg", "tao_nls_ksp_max_it": 50,
    "tao_nls_ksp_norm_type": "natural", **_LINE_SEARCH,
}
