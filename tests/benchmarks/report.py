"""Figures, tables and the picture of the benchmark, from what was measured."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

__all__ = ["figures", "form_text", "plain", "plot", "tables", "torch_version"]

_ITEM = {"double": 8, "single": 4}
TARGETS = {
    "double_over_torch_double_C4": 3, "double_over_torch_double_C8": 4, "double_over_torch_double_C16": 3,
    "double_over_torch_single_C4": 1.5, "double_over_torch_single_C8": 1.0, "double_over_torch_single_C16": 0.5,
    "single_over_torch_single_C4": 3, "single_over_torch_single_C8": 2, "single_over_torch_single_C16": 1,
    "matmul_share_C8": 0.5, "ranks_2_over_1": 1.8,
}
LIMITS = {"gradient_over_forward": 2.5, "outside_kernels": 0.05, "time_per_node_224_over_28": 1.3}


def torch_version() -> str:
    return version("torch")


def form_text(form: dict) -> str:
    """Return one candidate of the search in words."""
    words = ("compiled" if form["compiled"] else "eager", "channels last" if form["channels_last"] else "contiguous")
    return f"{words[0]}, {words[1]}, batches of {form['batch']}: {form['images_per_second']:.0f} images/s"


def plain(measured: dict) -> list[dict]:
    """Return the search's candidates as plain data."""
    return [
        {"features": features, "precision": precision, "threads": threads, "what": what} | form
        for features, result in measured.items()
        for ((precision, threads), what), forms in result["forms"].items() for form in forms
    ]


# What was measured in one repetition.


def _ours(round_: dict, precision: str, ranks: int, what: str, side: str = "ctrlnet") -> float:
    """Seconds of rf(m) ("forward"), rf.derivative() ("derivative") or both ("gradient"), of the slowest rank."""
    parts = {"forward": ("forward",), "derivative": ("gradient",), "gradient": ("forward", "gradient")}[what]
    return max(sum(rank[p] for p in parts) for rank in round_[side][precision, ranks])


def _kernels(round_: dict, precision: str) -> float:
    """Seconds inside the kernels of one value and gradient, on one rank."""
    return sum(round_["ctrlnet"][precision, 1][0]["kernels"].values())


def _sweeps(round_: dict, precision: str, *names: str) -> float:
    """Seconds inside the named kernels of one forward and one adjoint sweep over the sample, on one rank."""
    return sum(round_["ctrlnet"][precision, 1][0]["sweeps"][name] for name in names)


def _median(run: dict, of: Callable[[dict], float]) -> float:
    return float(np.median([of(round_) for round_ in run["repeats"]]))


def _seconds(run: dict, side: str, precision: str, cores: int, what: str) -> float:
    if side == "torch":
        return _median(run, lambda r: r["torch"][precision, cores][what])
    return _median(run, lambda r: _ours(r, precision, cores, what))


def _matmul(round_: dict, precision: str) -> float:
    """The faster of NumPy's and PyTorch's matrix multiplication on one thread, flop/s."""
    rates = round_["rates"][precision]
    return max(rates["matmul"], rates["matmul_torch"])


def _flops(run: dict, features: int, images: int, layers: int) -> float:
    """Multiplications and additions of K Y in one sweep; the adjoint sweep does twice as many."""
    return 2.0 * run["sizes"]["double", 1][0]["entries"] * features**2 * images * layers


def _field_bytes(run: dict, precision: str, features: int, images: int, layers: int) -> float:
    """One field read or written once in every layer."""
    return float(run["sizes"]["double", 1][0]["nodes"]) * features * images * layers * _ITEM[precision]


# A sweep reads Y and writes Y and what is kept; the adjoint reads Y, mu, lambda and kept, writes lambda and mu.
_FIELDS = {"forward": 3, "adjoint": 6}


def figures(measured: dict, on_meshes: dict, layers: int) -> dict[str, float]:
    """Return flat name -> number. A ratio without ``_n...`` is the worst one over the numbers of images."""
    out: dict[str, float] = {}
    for features, result in measured.items():
        for images, run in result["runs"].items():
            out |= {f"{name}_C{features}_n{images}": value
                    for name, value in _run_figures(run, features, images, layers).items()}
        for (precision, ranks), difference in result["difference"].items():
            out[f"difference_{precision}_ranks{ranks}_C{features}"] = difference
        for (precision, threads), peak in result["torch_peak"].items():
            out[f"peak_bytes_torch_{precision}_threads{threads}_C{features}"] = float(peak)
        first = next(iter(result["runs"]))
        for name in [n for n in out if n.endswith(f"_C{features}_n{first}")]:
            stem = name.removesuffix(f"_n{first}")
            values = [out[f"{stem}_n{images}"] for images in result["runs"] if f"{stem}_n{images}" in out]
            if "_over_torch_" in stem or stem.startswith(("ranks_2_over_1_C", "ranks_2_over_1_single", "matmul_share")):
                out[stem] = min(values)
            elif stem.startswith("gradient_over_forward"):
                out[stem] = max(values)
            elif "mesh_split" in stem:
                out[stem] = values[0]
    outside = [v for n, v in out.items() if n.startswith("outside_kernels_C") and n.endswith("_n512")]
    if outside:
        out["outside_kernels"] = max(outside)
    out["gradient_over_forward"] = max(out[f"gradient_over_forward_C{features}"] for features in measured)
    out["ranks_2_over_1"] = min(out[f"ranks_2_over_1_C{features}"] for features in measured)
    for (cells, triangles), run in on_meshes.items():
        kind = "triangles" if triangles else "quadrilaterals"
        out[f"ns_per_image_node_{kind}_{cells}"] = _per_node(run, "seconds")
    for cells in {cells for cells, _ in on_meshes} - {28}:
        ratios = [_per_node(on_meshes[cells, t], "seconds") / _per_node(on_meshes[28, t], "seconds")
                  for t in (False, True) if (28, t) in on_meshes]
        if ratios:
            out[f"time_per_node_{cells}_over_28"] = max(ratios)
    return out


def _run_figures(run: dict, features: int, images: int, layers: int) -> dict[str, float]:
    """Return the figures of one number of features and of images."""
    out = {}
    for what in ("gradient", "forward"):
        best = {p: min(_seconds(run, "torch", p, threads, what) for threads in (1, 2)) for p in _ITEM}
        suffix = "" if what == "gradient" else "_forward"
        for ours, theirs in (("double", "double"), ("double", "single"), ("single", "single")):
            name = f"{ours}_over_torch_{theirs}{suffix}"
            out[name] = best[theirs] / _seconds(run, "ctrlnet", ours, 2, what)
        for side, label in (("ctrlnet", "ranks"), ("torch", "threads")):
            for p in _ITEM:
                for cores in (1, 2):
                    seconds = _seconds(run, side, p, cores, what)
                    out[f"images_per_second_{side}_{p}_{label}{cores}_{what}"] = images / seconds
    flops = _flops(run, features, images, layers)
    for p in _ITEM:
        end = "" if p == "double" else "_single"
        out[f"gradient_over_forward{end}"] = _median(
            run, lambda r, p=p: _ours(r, p, 1, "derivative") / _ours(r, p, 1, "forward"))
        out[f"ranks_2_over_1{end}"] = _median(
            run, lambda r, p=p: _ours(r, p, 1, "gradient") / _ours(r, p, 2, "gradient"))
        # Two ranks' kernels share no data: what they lose to one another, they lose to shared caches and memory.
        out[f"kernels_2_over_1{end}"] = _median(run, lambda r, p=p: (
            _kernels(r, p) / max(sum(rank["kernels"].values()) for rank in r["ctrlnet"][p, 2])))
        if run["repeats"][0]["mesh_split"]:
            out[f"ranks_2_over_1_mesh_split{end}"] = _median(run, lambda r, p=p: (
                _ours(r, p, 1, "gradient") / _ours(r, p, 2, "gradient", "mesh_split")))
        out[f"outside_kernels{end}"] = _median(run, lambda r, p=p: 1 - _kernels(r, p) / _ours(r, p, 1, "gradient"))
        out[f"matmul_share{end}"] = _median(
            run, lambda r, p=p: 2 * flops / _sweeps(r, p, "adjoint_layers", "seed") / _matmul(r, p))
        for kernel in ("forward", "adjoint"):
            work = flops * _FIELDS[kernel] / 3  # the adjoint does twice the forward's on twice the fields
            traffic = _FIELDS[kernel] * _field_bytes(run, p, features, images, layers)
            seconds = _median(run, lambda r, k=kernel, p=p: _sweeps(r, p, f"{k}_layers"))
            out[f"gflops_{kernel}{end}"] = work / seconds / 1e9
            out[f"gbytes_{kernel}{end}"] = traffic / seconds / 1e9
        out[f"gflops_matmul{end}"] = _median(run, lambda r, p=p: _matmul(r, p)) / 1e9
        out[f"gbytes_copy{end}"] = _median(run, lambda r, p=p: r["rates"][p]["copy"]) / 1e9
        for ranks in (1, 2):
            out[f"peak_bytes_ctrlnet_{p}_ranks{ranks}"] = float(run["peak"][p, ranks])
    return out


def _kept_share(run: dict, precision: str) -> float:
    """Share of the chunks whose trajectories are kept between value and gradient, on one rank."""
    size = run["sizes"][precision, 1][0]
    return size["kept_chunks"] / size["chunks"]


def _per_node(run: dict, what: str) -> float:
    """Nanoseconds of value and gradient an image and node."""
    return 1e9 * float(np.median(run[what])) / (run["images"] * run["size"]["nodes"])


# Tables.


def tables(measured: dict, on_meshes: dict, layers: int, found: dict[str, float]) -> str:
    """Return all tables as text."""
    lines = ["", "Images a second; a ratio compares ctrlnet on 2 ranks with PyTorch's faster number of threads."]
    for what, title in (("gradient", "value + gradient"), ("forward", "value only")):
        lines += ["", f"{title:18} {'ctrlnet double':>15} {'torch double':>15} {'ctrlnet single':>15} "
                  f"{'torch single':>15}  {'d/d':>6} {'d/s':>6} {'s/s':>6}",
                  f"{'features images':18} " + " ".join(f"{n:>7} {m:>7}" for n, m in [("1 rank", "2 ranks"), (
                      "1 thr.", "2 thr.")] * 2)]
        for features, result in measured.items():
            for images in result["runs"]:
                end = f"C{features}_n{images}"
                speeds = [found[f"images_per_second_{side}_{p}_{label}{cores}_{what}_{end}"] for p in _ITEM
                          for side, label in (("ctrlnet", "ranks"), ("torch", "threads")) for cores in (1, 2)]
                suffix = "" if what == "gradient" else "_forward"
                ratios = [found[f"{a}_over_torch_{b}{suffix}_{end}"] for a, b in (
                    ("double", "double"), ("double", "single"), ("single", "single"))]
                lines.append(f"{features:8} {images:6}    " + " ".join(f"{s:7.0f}" for s in speeds) + "  "
                             + " ".join(f"{r:6.2f}" for r in ratios))
    lines += ["", "Kernels on one rank: rate, share of the matrix-multiply rate, least memory traffic, share of the",
              "roofline (the smaller of the matrix-multiply rate and intensity x copy rate).",
              f"{'features images':18} {'kernel':>16} {'GFLOP/s':>8} {'matmul':>8} {'share':>6} {'GB/s':>6} "
              f"{'copy':>6} {'roof':>6}"]
    for features, result in measured.items():
        for images in result["runs"]:
            for p in _ITEM:
                for kernel in _FIELDS:
                    lines.append(_roofline_line(found, features, images, p, kernel))
    lines += ["", "grad/fwd: seconds of rf.derivative() over seconds of rf(m); trajectories that are not kept are",
              "recomputed in the former. outside: share of both spent outside the compiled kernels. One rank.",
              "2 over 1: speed of two ranks that split the images; of their kernels alone, which share no data but the",
              "machine's caches and memory; of two ranks that split the mesh. Peak: largest resident memory of a rank.",
              f"{'features images':18} {'precision':>10} {'grad/fwd':>9} {'outside':>8} {'2 over 1':>9} {'kernels':>7} "
              f"{'mesh':>5} {'kept':>6} {'peak 1 rank':>11} {'2 ranks':>8}"]
    for features, result in measured.items():
        for images, run in result["runs"].items():
            for p in _ITEM:
                name = ("" if p == "double" else "_single") + f"_C{features}_n{images}"
                kept = f"{100 * _kept_share(run, p):.0f} %"
                split = found.get("ranks_2_over_1_mesh_split" + name)
                split = "" if split is None else f"{split:.2f}"
                peaks = [found[f"peak_bytes_ctrlnet_{p}_ranks{n}_C{features}_n{images}"] / 2**30 for n in (1, 2)]
                lines.append(
                    f"{features:8} {images:6}    {p:>10} {found['gradient_over_forward' + name]:9.2f} "
                    f"{100 * found['outside_kernels' + name]:6.1f} % {found['ranks_2_over_1' + name]:9.2f} "
                    f"{found['kernels_2_over_1' + name]:7.2f} {split:>5} {kept:>6} {peaks[0]:7.2f} GiB "
                    f"{peaks[1]:4.2f} GiB")
    if on_meshes:
        lines += ["", "Nanoseconds of value + gradient an image and node, 8 features, double, one rank.",
                  f"{'cells':18} {'quadrilaterals':>22} {'triangles':>22}   images"]
        for cells in sorted({c for c, _ in on_meshes}):
            pair = [on_meshes[cells, t] for t in (False, True)]
            texts = [f"{_per_node(r, 'seconds'):8.0f} (kernels {_per_node(r, 'kernels'):4.0f})" for r in pair]
            lines.append(f"{f'{cells}x{cells}':18} {texts[0]:>22} {texts[1]:>22}   {pair[0]['images']}")
    return "\n".join(lines + _targets(found))


def _roofline_line(found: dict, features: int, images: int, precision: str, kernel: str) -> str:
    end = ("" if precision == "double" else "_single") + f"_C{features}_n{images}"
    rate, traffic = found[f"gflops_{kernel}{end}"], found[f"gbytes_{kernel}{end}"]
    matmul, copy = found[f"gflops_matmul{end}"], found[f"gbytes_copy{end}"]
    roof = min(matmul, rate / traffic * copy)
    return (f"{features:8} {images:6}    {kernel + ' ' + precision:>16} {rate:8.1f} {matmul:8.1f} {rate / matmul:6.2f} "
            f"{traffic:6.1f} {copy:6.1f} {rate / roof:6.2f}")


def _targets(found: dict[str, float]) -> list[str]:
    lines = ["", f"{'target':36} {'wanted':>10} {'found':>8}"]
    for sign, wanted in ((1, TARGETS), (-1, LIMITS)):
        for name, bound in wanted.items():
            if name in found:
                verdict = "" if sign * (found[name] - bound) >= 0 else "  missed"
                words = "at least" if sign == 1 else "at most"
                lines.append(f"{name:36} {words} {bound:<5} {found[name]:5.2f}{verdict}")
    return lines


def plot(path: Path, measured: dict, on_meshes: dict, layers: int) -> None:
    """Draw speed beside PyTorch, the roofline, and time a node against the mesh."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = figures(measured, on_meshes, layers)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    speed, roof, nodes = figure.subplots(1, 3)
    groups = [(c, n) for c, result in measured.items() for n in result["runs"]]
    sides = [("ctrlnet", "double", "C0"), ("torch", "double", "C1"),
             ("ctrlnet", "single", "C9"), ("torch", "single", "C3")]

    def per_second(side: str, precision: str, features: int, images: int) -> float:
        cores = ["ranks2"] if side == "ctrlnet" else ["threads1", "threads2"]
        return max(found[f"images_per_second_{side}_{precision}_{k}_gradient_C{features}_n{images}"] for k in cores)

    for number, (side, p, colour) in enumerate(sides):
        heights = [per_second(side, p, c, n) / per_second("torch", "double", c, n) for c, n in groups]
        bars = speed.bar(np.arange(len(groups)) + 0.2 * (number - 1.5), heights, 0.2, color=colour, label=f"{side} {p}")
        speed.bar_label(bars, [f"{h:.1f}" for h in heights], fontsize=6)
    speed.set_xticks(range(len(groups)), [f"C={c}\n{n}" for c, n in groups])
    speed.set_ylabel("speed over PyTorch's double, value + gradient")
    speed.legend(fontsize=8)
    for p, colour in (("double", "C0"), ("single", "C9")):
        for c, n in groups:
            end = ("" if p == "double" else "_single") + f"_C{c}_n{n}"
            for kernel, marker in (("forward", "o"), ("adjoint", "s")):
                rate = found[f"gflops_{kernel}{end}"]
                roof.loglog(rate / found[f"gbytes_{kernel}{end}"], rate, marker, color=colour)
        x = np.geomspace(0.5, 200, 50)
        roof.loglog(x, np.minimum(found[f"gflops_matmul{end}"], x * found[f"gbytes_copy{end}"]), color=colour, label=p)
    roof.set_xlabel("flop/byte (o forward, square adjoint)")
    roof.set_ylabel("GFLOP/s of one rank; line: matmul and copy rates")
    roof.legend(fontsize=8)
    for triangles, label in ((False, "quadrilaterals"), (True, "triangles")):
        cells = sorted(c for c, t in on_meshes if t == triangles)
        if cells:
            nodes.set_xscale("log", base=2)
            nodes.set_xticks(cells, [str(c) for c in cells])
            nodes.plot(cells, [_per_node(on_meshes[c, triangles], "seconds") for c in cells], "o-", label=label)
    nodes.set_ylim(bottom=0)
    nodes.set_xlabel("cells along a side")
    nodes.set_ylabel("ns an image and node, value + gradient")
    if on_meshes:
        nodes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
