r"""Propagation and its gradient, timed beside PyTorch's conv2d in the same run.

The same network on both sides (checked first to give the same numbers): layers of
:math:`Y \leftarrow Y + h \tanh(\sum_j s_j D_j Y + b)` with all nine 3x3 operators on 29 x 29 nodes, a linear readout of
5 x 5 coarse nodes and the cross-entropy of its scores. ctrlnet runs as a user runs it: ``rf(m)`` and
``rf.derivative()`` of a ``TrainingProblem``'s reduced functional, on one rank and on two, which split the images (an
ensemble, the choice for meshes this small) or, for comparison, the mesh. PyTorch runs on one thread
and on two, forward without autograd, and forward and backward; it gets its fastest form out of several batch sizes,
memory formats, eager and compiled, and pads with zeros, which is its cheapest boundary. The programs stay alive and
are timed in turn; a figure is the median of the repetitions.

Run it with ``make bench``, ``make bench ARGS="--quick"`` or ``python tests/benchmarks/bench_propagation.py --help``.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import time
from pathlib import Path

import report
from channel import Worker
from quiet import Patience
from same_numbers import TOLERANCE, largest_difference

HERE = Path(__file__).parent
PRECISIONS = ("double", "single")
CORES = (1, 2)
SEED = 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time ctrlnet's propagation and gradient beside PyTorch's.")
    parser.add_argument("--quick", action="store_true",
                        help="4 features, 512 images, 3 repetitions, no compilation, meshes up to 56x56")
    parser.add_argument("--features", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--images", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 16, 128, 64, 512],
                        help="PyTorch's batch sizes, in the order in which they are tried")
    parser.add_argument("--search-seconds", type=float, default=45.0,
                        help="limit of one search for PyTorch's best form, of which there are 8 a number of features")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the search")
    parser.add_argument("--cells", type=int, nargs="*", default=[14, 28, 56, 112, 224],
                        help="meshes of the second table, cells along each side (none: no second table)")
    parser.add_argument("--wait", type=float, default=300.0,
                        help="seconds to wait, in all, for other programs to pause")
    parser.add_argument("--output", default="results/bench")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.features, arguments.images, arguments.repeats = [4], [512], 3
        arguments.no_compile, arguments.cells = True, [14, 28, 56]
    if min(*arguments.features, *arguments.images, arguments.layers, arguments.repeats) < 1:
        parser.error("--features, --images, --layers and --repeats take positive numbers.")
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed here: 'make bench' installs it (the extra 'bench').")
    return arguments


def ctrlnet_workers() -> dict:
    return {(p, n): Worker(HERE / "ctrlnet_network.py", ranks=n) for p in PRECISIONS for n in CORES}


def torch_workers() -> dict:
    return {(p, n): Worker(HERE / "torch_network.py", p, str(n), threads=n) for p in PRECISIONS for n in CORES}


def stop(workers: dict) -> None:
    for worker in workers.values():
        worker.stop()


def compare(arguments: argparse.Namespace, features: int, patience: Patience) -> dict:
    """Return everything measured for one number of features."""
    torch = torch_workers()
    result = {"forms": {}, "runs": {}, "torch_peak": {}, "difference": {}}
    try:
        for worker in torch.values():
            worker.connect()
        for number, images in enumerate(arguments.images):
            result["runs"][images] = _one_sample(arguments, features, images, torch, result, number == 0, patience)
        result["torch_peak"] = {key: worker.ask("peak_bytes")[0] for key, worker in torch.items()}
    finally:
        stop(torch)
    return result


def _one_sample(
    arguments: argparse.Namespace, features: int, images: int, torch: dict, result: dict, first: bool,
    patience: Patience,
) -> dict:
    ours = ctrlnet_workers()
    try:
        for worker in ours.values():
            worker.connect()
        if first:
            for precision, ranks in ours:
                pair = ours[precision, ranks], torch[precision, 1]
                differences = [
                    largest_difference(*pair, precision, features, arguments.layers, split_images)
                    for split_images in ((False, True) if ranks > 1 else (False,))]
                print(f"  {features} features, {precision}, {ranks} rank(s): loss and gradient differ from "
                      f"PyTorch's by {max(differences):.1e} at most", flush=True)
                if not max(differences) < TOLERANCE[precision]:
                    raise SystemExit(f"The two networks do not give the same numbers: {max(differences):.1e}.")
                result["difference"][precision, ranks] = max(differences)
        for worker in torch.values():
            worker.ask("build", side=29, features=features, images=images, layers=arguments.layers, seed=SEED)
        if first:
            for key, what in itertools.product(torch, ("gradient", "forward")):
                patience.wait()
                result["forms"][key, what] = torch[key].ask(
                    "search", what=what, images=128, batches=arguments.batches, compiled=not arguments.no_compile,
                    seconds=arguments.search_seconds)[0]
                print(f"  {features} features, {key[0]}, {key[1]} thread(s), {what}: PyTorch's best is "
                      f"{report.form_text(result['forms'][key, what][0])}", flush=True)
        for worker in torch.values():
            worker.ask("use", images=images)
        sizes = {}
        for (precision, ranks), worker in ours.items():
            # The comparison with a split mesh is made on the first sample alone: memory is finite.
            for key in ("run", "mesh") if first and ranks > 1 else ("run",):
                size = worker.ask(
                    "build", key=key, cells=28, features=features, images=images, layers=arguments.layers,
                    precision=precision, seed=SEED, split_images=ranks > 1 and key == "run")
                worker.ask("measure", key=key)
                sizes.setdefault((precision, ranks), size)
        repeats = [_one_round(ours, torch, patience, first) for _ in range(arguments.repeats)]
        peaks = {key: max(worker.ask("peak_bytes")) for key, worker in ours.items()}
        return {"sizes": sizes, "repeats": repeats, "peak": peaks}
    finally:
        stop(ours)


def _one_round(ours: dict, torch: dict, patience: Patience, with_mesh_split: bool) -> dict:
    """Measure every program once, one after the other."""
    found = {"ctrlnet": {}, "mesh_split": {}, "torch": {}, "rates": {}}
    for key in itertools.product(PRECISIONS, CORES):
        patience.wait()
        found["ctrlnet"][key] = ours[key].ask("measure", key="run")
        patience.wait()
        found["torch"][key] = torch[key].ask("measure")[0]
        if with_mesh_split and key[1] > 1:
            patience.wait()
            found["mesh_split"][key] = ours[key].ask("measure", key="mesh")
    for precision in PRECISIONS:
        patience.wait()
        rates = ours[precision, 1].ask("rates", precision=precision)[0]
        rates["matmul_torch"] = torch[precision, 1].ask("rates")[0]["matmul"]
        found["rates"][precision] = rates
    return found


def meshes(arguments: argparse.Namespace, patience: Patience) -> dict:
    """Return seconds of one value and gradient on each mesh, 8 features, double precision, one rank."""
    worker = {"meshes": Worker(HERE / "ctrlnet_network.py", ranks=1)}
    try:
        worker["meshes"].connect()
        runs = {}
        for cells, triangles in itertools.product(arguments.cells, (False, True)):
            # About the same number of nodal values on every mesh, in whole blocks of images.
            images = max(32, round(512 * 29**2 / (cells + 1) ** 2 / 32) * 32)
            size = worker["meshes"].ask(
                "build", key=f"{cells}{triangles}", cells=cells, features=8, images=images, layers=arguments.layers,
                precision="double", seed=SEED, triangles=triangles)[0]
            worker["meshes"].ask("measure", key=f"{cells}{triangles}")
            runs[cells, triangles] = {"images": images, "size": size, "seconds": [], "kernels": []}
        for _ in range(arguments.repeats):
            for (cells, triangles), run in runs.items():
                patience.wait()
                measured = worker["meshes"].ask("measure", key=f"{cells}{triangles}")[0]
                run["seconds"].append(measured["forward"] + measured["gradient"])
                run["kernels"].append(sum(measured["kernels"].values()))
        return runs
    finally:
        stop(worker)


def main() -> None:
    arguments = parse()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    patience = Patience(arguments.wait)
    measured = {features: compare(arguments, features, patience) for features in arguments.features}
    on_meshes = meshes(arguments, patience) if arguments.cells else {}
    load.append(os.getloadavg()[0])
    figures = report.figures(measured, on_meshes, arguments.layers)
    figures["seconds"] = time.perf_counter() - began
    print(report.tables(measured, on_meshes, arguments.layers, figures))
    print(f"\nLoad average of the machine before and after: {load[0]:.1f}, {load[1]:.1f}; seconds spent waiting "
          f"for other programs: {patience.spent:.0f} of {arguments.wait:.0f}.")

    # Only now: importing ctrlnet starts MPI, and a process that has done so cannot launch other MPI jobs. PETSc would
    # take this program's arguments for its own.
    sys.argv[1:] = []
    from ctrlnet.report.results import write_results

    report.plot(Path(arguments.output) / "bench.png", measured, on_meshes, arguments.layers)
    settings = vars(arguments) | {"load": load, "torch": report.torch_version(), "cores": os.cpu_count()}
    path = write_results(arguments.output, figures, settings, forms=report.plain(measured))
    print(f"Figures and results.json: {path.parent}/")


if __name__ == "__main__":
    sys.exit(main())
