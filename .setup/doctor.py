"""Say whether the set-up works, and if not, what to do: ``make doctor`` or ``python .setup/doctor.py``.

Every probe runs in a process of its own, so that a broken library is reported instead of ending the
doctor, and nothing heavy is imported here.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = ("ctrlnet", "firedrake", "fenics-ufl", "firedrake-fiat", "pyadjoint-ad", "petsc4py", "mpi4py",
            "h5py", "numpy", "scipy")
CACHES = ("PYOP2_CACHE_DIR", "FIREDRAKE_TSFC_KERNEL_CACHE_DIR", "XDG_CACHE_HOME")
RELATIVE_TOLERANCE = 1e-10

PETSC_PROBE = """
import json, petsc4py
from petsc4py import PETSc
from mpi4py import MPI
have = [p for p in ("hdf5", "mumps", "ptscotch", "scalapack", "metis") if PETSc.Sys.hasExternalPackage(p)]
print(json.dumps({
    "version": "{}.{}.{}".format(*PETSc.Sys.getVersion()),
    "folder": petsc4py.get_config()["PETSC_DIR"],
    "packages": have,
    "mpi": MPI.Get_library_version().split(",")[0].strip("\\0\\n "),
}))
"""
H5PY_PROBE = """
import json, h5py
print(json.dumps({"mpi": bool(h5py.get_config().mpi), "hdf5": h5py.version.hdf5_version}))
"""
POISSON_PROBE = """
import json
from firedrake import *
mesh = UnitSquareMesh(12, 12)
x, y = SpatialCoordinate(mesh)
V = FunctionSpace(mesh, "CG", 2)
u, v = Function(V), TestFunction(V)
residual = inner(grad(u), grad(v)) * dx - (1 + x * exp(y)) * v * dx
parameters = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
solve(residual == 0, u, DirichletBC(V, 0, "on_boundary"), solver_parameters=parameters)
values = [assemble(u * dx), assemble(inner(grad(u), grad(u)) * dx), assemble(x * u ** 2 * dx)]
if mesh.comm.rank == 0:
    print(json.dumps({"ranks": mesh.comm.size, "values": values}))
"""
OTHER_MPI = "remove the other MPI, or set MPI4PY_MPIABI=openmpi"
REINSTALL = "run 'make clean', then 'make install'"


@dataclass
class Report:
    """What was found: lines as they are printed, and the troubles with their remedies."""

    troubles: list[tuple[str, str]] = field(default_factory=list)

    def line(self, name: str, text: str) -> None:
        """Print one finding."""
        print(f"  {name:<16} {text}", flush=True)

    def trouble(self, what: str, remedy: str) -> None:
        """Keep one trouble for the end."""
        self.troubles.append((what, remedy))

    def close(self) -> int:
        """Print all troubles with what to do; return the exit code."""
        if not self.troubles:
            print("All is well.")
            return 0
        print("What is wrong:")
        for what, remedy in self.troubles:
            print(f"  - {what}\n    What to do: {remedy}.")
        return 1


class ProbeError(Exception):
    """A probe did not run to its end; the text says how it ended."""

    def __init__(self, text: str, remedy: str):
        super().__init__(text)
        self.remedy = remedy


def which(tool: str) -> str | None:
    """The environment's program of that name, or else the system's."""
    return shutil.which(tool, path=os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", os.defpath)]))


def run_probe(code: str, launcher: Sequence[str] = (), timeout: float = 600) -> dict:
    """Run Python code in another process and return the JSON object that is its last line.

    Parameters
    ----------
    code
        Python source.
    launcher
        What stands before the interpreter, such as ``("mpiexec", "-n", "2")``.
    timeout
        In seconds; compiling the first kernels takes a part of it.

    Raises
    ------
    ProbeError
        If the process fails, hangs or prints no result.
    """
    command = [*launcher, sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, timeout=timeout, check=False, **options)
    except subprocess.TimeoutExpired:
        text = f"it did not end within {timeout:.0f} s"
        raise ProbeError(text, "see whether the machine is overloaded, then try again") from None
    except OSError as error:
        raise ProbeError(str(error), REINSTALL) from error
    if done.returncode != 0:
        text = _last_lines(done.stderr or done.stdout, done.returncode)
        raise ProbeError(text, _remedy(done.returncode, done.stderr))
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise ProbeError("it printed no result", REINSTALL)


def _last_lines(output: str, code: int, count: int = 4) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "\n      ".join([f"exit code {code}", *lines[-count:]])


def _remedy(code: int, stderr: str) -> str:
    """What to do about a probe that failed in this way."""
    if code in (-4, 132) or "Illegal instruction" in stderr:
        petsc = os.environ.get("PETSC_DIR", "")
        return (
            f"PETSc was built for another kind of processor: remove {Path(petsc).parent} and the kernel "
            f"caches named above, then {REINSTALL}"
        )
    if "PETSC_DIR and/or PETSC_ARCH" in stderr:
        return "unset PETSC_DIR and PETSC_ARCH, or start Python as .venv/bin/python without -S or -I"
    if "RUN_AS_ROOT" in stderr:
        return "run 'make install', which lets Open MPI run as root"
    if "compil" in stderr.lower():
        return "see whether 'mpicc --version' works; 'make install' installs the compiler"
    return REINSTALL


def check_versions(report: Report) -> None:
    """Versions of the interpreter and of the packages; which are missing."""
    report.line("python", f"{platform.python_version()} ({sys.executable})")
    for name in PACKAGES:
        try:
            report.line(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            report.line(name, "MISSING")
            report.trouble(f"the package {name} is not installed", "run 'make install'")


def check_libraries(report: Report) -> None:
    """PETSc, MPI and HDF5 as the Python packages see them."""
    try:
        petsc = run_probe(PETSC_PROBE)
    except ProbeError as error:
        report.line("PETSc", "FAILED")
        report.trouble(f"petsc4py cannot be used: {error}", error.remedy)
    else:
        report.line("PETSc", f"{petsc['version']} with {', '.join(petsc['packages'])} ({petsc['folder']})")
        report.line("MPI library", petsc["mpi"])
        for package in {"hdf5", "mumps"} - set(petsc["packages"]):
            remedy = f"remove {Path(petsc['folder']).parent}, then {REINSTALL}"
            report.trouble(f"PETSc was built without {package}", remedy)
        if "Open MPI" not in petsc["mpi"]:
            report.trouble(f"mpi4py runs on {petsc['mpi']}, PETSc on Open MPI", OTHER_MPI)
    try:
        hdf5 = run_probe(H5PY_PROBE)
    except ProbeError as error:
        report.line("HDF5", "FAILED")
        report.trouble(f"h5py cannot be used: {error}", error.remedy)
    else:
        report.line("HDF5", f"{hdf5['hdf5']}, {'with' if hdf5['mpi'] else 'WITHOUT'} MPI")
        if not hdf5["mpi"]:
            report.trouble("h5py was built without MPI: checkpoints cannot be written in parallel", REINSTALL)


def check_machine(report: Report) -> None:
    """Compiler, cores, launcher, and folders for compiled kernels."""
    for tool, why in (("mpicc", "kernels are compiled with it"), ("mpiexec", "it starts several ranks")):
        path = which(tool)
        if path is None:
            report.line(tool, "MISSING")
            report.trouble(f"{tool} is not found; {why}", "run 'make install', which installs Open MPI")
            continue
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = (told.stdout + told.stderr).partition("\n")[0]
        report.line(tool, f"{version} ({path})")
        if told.returncode != 0:
            report.trouble(f"'{path} --version' fails: {version}", "reinstall the compiler and Open MPI")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    report.line("cores", f"{len(os.sched_getaffinity(0))} usable, OMP_NUM_THREADS={threads}")
    if any(name not in os.environ for name in CACHES):
        report.trouble("the environment is not set: ctrlnet_environment.pth is missing", "run 'make install'")
    for name in CACHES:
        folder = os.environ.get(name)
        report.line("cache folder", f"{name}={folder or 'unset'}")
        if folder is not None and not _is_writable(Path(folder)):
            report.trouble(f"the cache folder {folder} cannot be written", f"set {name} to one that can")


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, or in its nearest ancestor that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def differences(serial: Sequence[float], parallel: Sequence[float]) -> list[float]:
    """Relative differences of two lists of numbers, entry by entry."""
    return [abs(b - a) / max(abs(a), abs(b), 1e-300) for a, b in zip(serial, parallel, strict=True)]


def check_poisson(report: Report) -> None:
    """Solve one Poisson problem on one rank and on two, and compare."""
    results = {}
    for ranks in (1, 2):
        launcher = () if ranks == 1 else (which("mpiexec") or "mpiexec", "-n", str(ranks))
        name = f"Poisson, {ranks} rank{'s' if ranks > 1 else ''}"
        try:
            result = run_probe(POISSON_PROBE, launcher)
        except ProbeError as error:
            report.line(name, "FAILED")
            report.trouble(f"Firedrake fails on {ranks} rank(s): {error}", error.remedy)
            continue
        results[ranks] = result["values"]
        report.line(name, f"integral {result['values'][0]:.15f}")
        if result["ranks"] != ranks:
            what = f"mpiexec -n {ranks} gave {result['ranks']} rank(s): it belongs to another MPI"
            report.trouble(what, OTHER_MPI)
    if len(results) == 2:
        worst = max(differences(results[1], results[2]))
        report.line("they differ by", f"{worst:.1e} (relative)")
        if not worst <= RELATIVE_TOLERANCE:
            what = f"one and two ranks differ by {worst:.1e}, more than {RELATIVE_TOLERANCE:.0e}"
            report.trouble(what, REINSTALL)


def check_ctrlnet(report: Report) -> None:
    """Import the package, with all that its public names need."""
    try:
        run_probe("import ctrlnet.public; print('{}')")
        report.line("import ctrlnet", "works")
    except ProbeError as error:
        report.line("import ctrlnet", "FAILED")
        report.trouble(f"ctrlnet cannot be imported: {error}", error.remedy)


def main() -> int:
    """Run all checks; return 0 if all is well, 1 otherwise."""
    report = Report()
    print("Versions")
    check_versions(report)
    check_libraries(report)
    print("Machine")
    check_machine(report)
    print("Trial")
    check_ctrlnet(report)
    check_poisson(report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
