"""C text of the adjoint whose control gradients stay apart, image by image.

``pull`` is the adjoint of a layer without its control gradient. ``each`` adds
``sum_nodes mu (D_j Y)^T`` of every image by itself: rows of one class go in blocks, so that a register tile
``G_q = sum_rows mu_q Y^T`` of one SIMD vector of images is loaded once a block; when the class ends, it is
contracted with ``D_j[q]``. Where rows share classes (uniform meshes) that costs what the summed gradient costs.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["per_image"]

_ROWS = 32  # of one block


def per_image(
    features: int, tiles: list[tuple[int, int]], gather_and_update: str, loop: Callable[[str, str], str]
) -> str:
    """Return the functions ``pull`` and ``each``.

    Parameters
    ----------
    features
        C.
    tiles
        (start, size) of the features of a register tile's sides.
    gather_and_update
        Body of the adjoint of one block of vectors.
    loop
        Function of (combines, body) that returns the loop over rows.
    """
    pull = (
        "static void pull(const pattern *p, int nv, T h, const T *restrict S, const V *restrict mu, V *restrict lambda,"
        " const V *restrict kept, V *restrict below) {\n    T K[WIDEST * CC];\n"
        + loop("combine(m, table, S, K);", gather_and_update) + "}\n"
    )
    body = []
    for r0, rows in tiles:
        for c0, columns in tiles:
            cells = [(r, c) for r in range(rows) for c in range(columns)]
            body.append("            {")
            body += [f"                V g{r}_{c} = g[{(r0 + r) * features + c0 + c}];" for r, c in cells]
            body += [
                "                for (int u = t; u < end; u++) {",
                "                    const int i = p->order[u];",
                "                    const V *left = mu + (size_t)p->column[p->start[i] + q] * C * nv + v;",
                "                    const V *right = Y + (size_t)i * C * nv + v;",
            ]
            body += [f"                    const V l{r} = left[{r0 + r} * nv];" for r in range(rows)]
            body += [f"                    const V e{c} = right[{c0 + c} * nv];" for c in range(columns)]
            body += [f"                    g{r}_{c} += l{r} * e{c};" for r, c in cells]
            body.append("                }")
            body += [f"                g[{(r0 + r) * features + c0 + c}] = g{r}_{c};" for r, c in cells]
            body.append("            }")
    return pull + f"""
/* gS[j][..][v] += sum_q table[q][j] G[v][q][..], and G = 0 */
static void contract_each(int m, int nv, const T *restrict table, V *restrict G, V *restrict gS) {{
    for (int v = 0; v < nv; v++)
        for (int q = 0; q < m; q++) {{
            V *restrict g = G + ((size_t)v * WIDEST + q) * CC;
            for (int j = 0; j < J; j++) {{
                const T d = table[q * J + j];
                if (d == 0) continue;
                for (int e = 0; e < CC; e++) gS[(size_t)(j * CC + e) * nv + v] += d * g[e];
            }}
            for (int e = 0; e < CC; e++) g[e] = SPLAT(0);
        }}
}}
static void each(const pattern *p, int nv, const V *restrict Y, const V *restrict mu, V *restrict G, V *restrict gS,
                 V *restrict gb) {{
    int current = -1, m = 0;
    const T *table = p->table;
    for (int t = 0, end; t < p->rows; t = end) {{
        const int cls = p->cls[p->order[t]];
        for (end = t; end < p->rows && end < t + {_ROWS} && p->cls[p->order[end]] == cls; end++) {{}}
        if (cls != current) {{
            if (current >= 0) contract_each(m, nv, table, G, gS);
            current = cls;
            m = p->start[p->order[t] + 1] - p->start[p->order[t]];
            table = p->table + (size_t)p->first[cls] * J;
        }}
        for (int v = 0; v < nv; v++)
            for (int q = 0; q < m; q++) {{
                V *restrict g = G + ((size_t)v * WIDEST + q) * CC;
""" + "\n".join(body) + """
            }
        for (int u = t; u < end; u++) {
            const V *restrict own = mu + (size_t)p->order[u] * C * nv;
            for (int f = 0; f < C * nv; f++) gb[f] += own[f];
        }
    }
    if (current >= 0) contract_each(m, nv, table, G, gS);
}
"""
