"""C text of the fused sweeps of residual dynamics under forward Euler.

One function a direction. A node's row of all operators is first combined with the layer's coefficients,
``K_q = sum_j D_j[q] s_j`` (C x C for each neighbour q), and is then applied to all images of the chunk:
that costs ``neighbours * C^2`` multiplications an image instead of ``operators * C * (neighbours + C)``.
Rows of one class share the combined row, so on a uniform mesh it is formed a handful of times a layer.
The control gradient is accumulated the same way round, as ``G_q = sum_images mu_q Y^T`` for each class,
and contracted with ``D_j[q]`` when the class ends.

Every function gathers: the adjoint runs over the rows of ``D_j^T``. A field is stored as
``(nodes, C, images)``; ``nv`` counts the SIMD vectors of one feature row. ``*_layers`` run layers ``first`` to
``last - 1`` of a sweep: all of them, or one at a time where ghosts have to be fetched between layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.kernels.code.blocks import feature_blocks, vectors_of
from ctrlnet.kernels.code.patterns import PATTERN_TEXT
from ctrlnet.kernels.code.precision import DOUBLE, Precision
from ctrlnet.kernels.code.simd import simd_text
from ctrlnet.kernels.code.templates import pointwise_text, template
from ctrlnet.kernels.fused.per_image import per_image

__all__ = ["KernelSpec", "generate"]

_TILE = (4, 6)  # features along the sides of a gradient tile, neighbours' and own
_WIDE_TILE = (2, 8)  # where it spans all own features: neighbours' rows, which come from farther, are read once
_BATCH = 16  # rows of one class whose outer products are summed in registers


@dataclass(frozen=True)
class KernelSpec:
    """What the generated code depends on.

    Parameters
    ----------
    features, operators, widest_row
        C, J and the longest row of the two patterns.
    activation
        C text of sigma(z), and of sigma' and sigma'' of the kept quantity.
    keeps_value
        Whether sigma(Z) is kept for the adjoint instead of Z.
    precision
        Of states and arithmetic.
    """

    features: int
    operators: int
    widest_row: int
    activation: tuple[str, str, str]
    keeps_value: bool
    precision: Precision = DOUBLE

    @property
    def vector_block(self) -> int:
        """Vectors of images a register block holds; the chunk is a multiple of it."""
        return vectors_of(self.features)


def _prelude(spec: KernelSpec) -> str:
    return simd_text(spec.precision) + PATTERN_TEXT + pointwise_text(spec.activation) + f"""
#define C {spec.features}
#define CC (C * C)
#define J {spec.operators}
#define WIDEST {spec.widest_row}

/* K[q][..] = sum_j table[q][j] S[j][..] over the neighbours q of one row class */
static void combine(int m, const T *restrict table, const T *restrict S, T *restrict K) {{
    for (int q = 0; q < m; q++) {{
        T *restrict k = K + q * CC;
        for (int e = 0; e < CC; e++) k[e] = table[q * J] * S[e];
        for (int j = 1; j < J; j++) {{
            const T d = table[q * J + j];
            const T *restrict s = S + j * CC;
            for (int e = 0; e < CC; e++) k[e] += d * s[e];
        }}
    }}
}}
/* dS[j][..] += sum_q table[q][j] sum_lanes G[q][..], and G = 0 */
static void contract(int m, const T *restrict table, V *restrict G, double *restrict dS) {{
    for (int q = 0; q < m; q++) {{
        T g[CC];
        for (int e = 0; e < CC; e++) {{ g[e] = v_sum(G[q * CC + e]); G[q * CC + e] = SPLAT(0); }}
        for (int j = 0; j < J; j++) {{
            const double d = table[q * J + j];
            for (int e = 0; e < CC; e++) dS[j * CC + e] += d * g[e];
        }}
    }}
}}
{_gradient_tile(spec)}
"""


def _gradient_tile(spec: KernelSpec) -> str:
    """G[q][r][c] += sum over a batch of rows i and over images of left_q(i)[r] right_i[c], in register tiles."""
    body, tile = [], _WIDE_TILE if _TILE[1] < spec.features <= _WIDE_TILE[1] else _TILE
    for r0, rows in feature_blocks(spec.features, tile[0]):
        for c0, columns in feature_blocks(spec.features, tile[1]):
            cells = [(r, c) for r in range(rows) for c in range(columns)]
            body.append("        {")
            body += [f"            V g{r}_{c} = g[{(r0 + r) * spec.features + c0 + c}];" for r, c in cells]
            body += [
                "            for (int k = 0; k < n; k++) {",
                f"                const V *restrict left = field + ((size_t)c[k][q] * C + {r0}) * nv;",
                f"                const V *restrict right = other + ((size_t)i[k] * C + {c0}) * nv;",
                "                for (int v = 0; v < nv; v++) {",
            ]
            body += [f"                    const V l{r} = left[{r} * nv + v];" for r in range(rows)]
            body += [f"                    V e{c} = right[{c} * nv + v]; HOLD(e{c});" for c in range(columns)]
            body += [f"                    g{r}_{c} += l{r} * e{c};" for r, c in cells]
            body += ["                }", "            }"]
            body += [f"            g[{(r0 + r) * spec.features + c0 + c}] = g{r}_{c};" for r, c in cells]
            body.append("        }")
    return (
        "static void outer(int m, int n, const int *restrict i, const int *const *c, int nv, const V *restrict field,"
        " const V *restrict other, V *restrict G) {\n"
        "    for (int q = 0; q < m; q++) {\n"
        "        V *restrict g = G + q * CC;\n" + "\n".join(body) + "\n    }\n}"
    )


def _gather(spec: KernelSpec, c0: int, size: int, terms: list[tuple[str, str]], name: str, initial: str) -> str:
    """Registers ``name{f}_{v}`` of one feature block = initial + sum over terms (K, field) of K field."""
    width = spec.vector_block
    cells = [(f, v) for f in range(size) for v in range(width)]
    lines = [f"            V {name}{f}_{v} = {initial.format(feature=c0 + f)};" for f, v in cells]
    lines.append("            for (int q = 0; q < m; q++) {")
    lines.append("                const size_t at = (size_t)c[q] * C * nv + v;")
    for t, (matrix, field) in enumerate(terms):
        lines += [
            f"                const V *restrict y{t} = {field} + at;",
            f"                const T *restrict k{t} = {matrix} + q * CC + {c0};",
        ]
    lines.append("                for (int f = 0; f < C; f++) {")
    for t in range(len(terms)):
        lines += [f"                    const V y{t}_{v} = y{t}[{v}];" for v in range(width)]
        lines += [f"                    {name}{f}_{v} += k{t}[{f}] * y{t}_{v};" for f, v in cells]
        lines.append(f"                    y{t} += nv; k{t} += C;")
    lines += ["                }", "            }"]
    return "\n".join(lines)


def _rows(spec: KernelSpec, combines: str, body: str, outer: str = "") -> str:
    """Loop over rows; combine coefficients when the class changes; run the body over blocks of vectors.

    ``outer`` adds a batch of n rows to G, which is contracted when the class ends.
    """
    batched = f"if (n == {_BATCH}) {{ {outer} n = 0; }} i_[n] = i; c_[n++] = c;" if outer else ""
    at_class_end = f"if (current >= 0) {{ {outer} n = 0; contract(m, table, G, gS); }}" if outer else ""
    return f"""
    {f"int n = 0, i_[{_BATCH}]; const int *c_[{_BATCH}];" if outer else ""}
    int current = -1, m = 0;
    const T *table = p->table;
    for (int t = 0; t < p->rows; t++) {{
        const int i = p->order[t];
        const int *restrict c = p->column + p->start[i];
        if (p->cls[i] != current) {{
            {at_class_end}
            current = p->cls[i];
            m = p->start[i + 1] - p->start[i];
            table = p->table + (size_t)p->first[current] * J;
            {combines}
        }}
        for (int v = 0; v < nv; v += {spec.vector_block}) {{
            const size_t own = (size_t)i * C * nv + v;
{body}
        }}
        {batched}
    }}
    {at_class_end}
"""


def _epilogue(spec: KernelSpec, c0: int, size: int, lines: list[str]) -> str:
    """Repeat the lines for each register of a block; {o} is its offset, {f}_{v} its name."""
    out = []
    for f in range(size):
        for v in range(spec.vector_block):
            offset = f"own + {c0 + f} * nv + {v}"
            out.append("            {" + f" const size_t o = {offset};")
            out += ["                " + line.format(r=f"{f}_{v}") for line in lines]
            out.append("            }")
    return "\n".join(out)


def _forward(spec: KernelSpec) -> str:
    keep = "a" if spec.keeps_value else "z{r}"
    body = "".join(
        "            {\n" + _gather(spec, c0, n, [("K", "Y")], "z", "SPLAT(b[{feature}])") + "\n"
        + _epilogue(spec, c0, n, [
            "const V a = activate(z{r});", f"if (kept) kept[o] = {keep};", "next[o] = Y[o] + h * a;"])
        + "\n            }\n"
        for c0, n in feature_blocks(spec.features)
    )
    return (
        "static void forward(const pattern *p, int nv, T h, const T *restrict S, const T *restrict b,"
        " const V *restrict Y, V *restrict next, V *restrict kept) {\n    T K[WIDEST * CC];"
        + _rows(spec, "combine(m, table, S, K);", body) + "}\n"
    )


def _tangent(spec: KernelSpec) -> str:
    body = "".join(
        "            {\n" + _gather(spec, c0, n, [("K", "dY"), ("dK", "Y")], "z", "SPLAT(db[{feature}])") + "\n"
        + _epilogue(spec, c0, n, ["if (dZ) dZ[o] = z{r};", "next[o] = dY[o] + h * slope(kept[o]) * z{r};"])
        + "\n            }\n"
        for c0, n in feature_blocks(spec.features)
    )
    return (
        "static void tangent(const pattern *p, int nv, T h, const T *restrict S, const T *restrict dS,"
        " const T *restrict db, const V *restrict Y, const V *restrict kept, const V *restrict dY,"
        " V *restrict next, V *restrict dZ) {\n    T K[WIDEST * CC], dK[WIDEST * CC];"
        + _rows(spec, "combine(m, table, S, K); combine(m, table, dS, dK);", body) + "}\n"
    )


_SUMS = (
    "for (int k = 0; k < n; k++) for (int f = 0; f < C; f++) for (int v = 0; v < nv; v++)"
    " B[f] += {source}[((size_t)i_[k] * C + f) * nv + v];"
)
_START = (
    "    V G[WIDEST * CC], B[C];\n"
    "    for (int e = 0; e < WIDEST * CC; e++) G[e] = SPLAT(0);\n"
    "    for (int f = 0; f < C; f++) B[f] = SPLAT(0);\n"
)
_FINISH = "    for (int f = 0; f < C; f++) gb[f] += v_sum(B[f]);\n"


def _adjoint_body(spec: KernelSpec) -> str:
    return "".join(
        "            {\n" + _gather(spec, c0, n, [("K", "mu")], "z", "SPLAT(0)") + "\n"
        + _epilogue(spec, c0, n, [
            "const V l = lambda[o] + h * z{r};", "lambda[o] = l;", "if (kept) below[o] = slope(kept[o]) * l;"])
        + "\n            }\n"
        for c0, n in feature_blocks(spec.features)
    )


def _adjoint(spec: KernelSpec) -> str:
    body = _adjoint_body(spec)
    outer = "outer(m, n, i_, c_, nv, mu, Y, G); " + _SUMS.format(source="mu")
    return (
        "static void adjoint(const pattern *p, int nv, T h, const T *restrict S, const V *restrict Y,"
        " const V *restrict mu, V *restrict lambda, const V *restrict kept, V *restrict below,"
        " double *restrict gS, double *restrict gb) {\n    T K[WIDEST * CC];\n" + _START
        + _rows(spec, "combine(m, table, S, K);", body, outer) + _FINISH + "}\n"
    )


def _second_order(spec: KernelSpec) -> str:
    body = "".join(
        "            {\n" + _gather(spec, c0, n, [("K", "mu")], "z", "SPLAT(0)") + "\n"
        + _gather(spec, c0, n, [("K", "dmu"), ("dK", "mu")], "d", "SPLAT(0)") + "\n"
        + _epilogue(spec, c0, n, [
            "const V l = lambda[o] + h * z{r}, dl = dlambda[o] + h * d{r};",
            "lambda[o] = l; dlambda[o] = dl;",
            "if (kept) {{ const V s = slope(kept[o]); below[o] = s * l;"
            " dbelow[o] = s * dl + curvature(kept[o]) * dZ[o] * l; }}"])
        + "\n            }\n"
        for c0, n in feature_blocks(spec.features)
    )
    outer = (
        "outer(m, n, i_, c_, nv, dmu, Y, G); outer(m, n, i_, c_, nv, mu, dY, G); " + _SUMS.format(source="dmu")
    )
    return (
        "static void second_order(const pattern *p, int nv, T h, const T *restrict S, const T *restrict dS,"
        " const V *restrict Y, const V *restrict dY, const V *restrict mu, const V *restrict dmu,"
        " V *restrict lambda, V *restrict dlambda, const V *restrict kept, const V *restrict dZ,"
        " V *restrict below, V *restrict dbelow, double *restrict gS, double *restrict gb) {\n"
        "    T K[WIDEST * CC], dK[WIDEST * CC];\n" + _START
        + _rows(spec, "combine(m, table, S, K); combine(m, table, dS, dK);", body, outer) + _FINISH + "}\n"
    )


def _per_image(spec: KernelSpec) -> str:
    return per_image(
        spec.features, feature_blocks(spec.features, _TILE[0]), _adjoint_body(spec),
        lambda combines, body: _rows(spec, combines, body))


def generate(spec: KernelSpec) -> str:
    """Return the C translation unit of all sweeps for one specification."""
    parts = (_prelude, _forward, _adjoint, _tangent, _second_order, _per_image)
    layers = template("fused", "layers.c.in")
    return "\n".join([*(part(spec) for part in parts), layers])
