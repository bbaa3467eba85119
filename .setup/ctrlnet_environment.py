"""What every Python of the environment sets before anything else is imported.

The set-up installs this module beside a ``.pth`` file that calls `apply`, so that neither a user nor
a launcher has to export a variable. A value that the user has set wins, but for PETSC_DIR and
PETSC_ARCH: the environment's petsc4py works with one PETSc only, and Firedrake refuses any other.
"""

import os
import sys


def apply(petsc_dir: str, version: str) -> None:
    """Set the threads, the kernel caches and PETSc's folder.

    Parameters
    ----------
    petsc_dir
        The installed PETSc that petsc4py was built against.
    version
        Firedrake's version: kernels of another one or of another PETSc must not be mixed up.
    """
    env = os.environ
    env["PETSC_DIR"] = petsc_dir
    env.pop("PETSC_ARCH", None)

    # As an activated environment has it: what is started from here finds this environment's mpiexec.
    programs = os.path.join(sys.prefix, "bin")
    path = env.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != programs:
        env["PATH"] = programs + os.pathsep + path

    # One thread a rank: MPI fills the cores.
    env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OPENBLAS_NUM_THREADS", "1")

    # Outside any checkout, so that a fresh one starts with compiled kernels.
    # XDG_CACHE_HOME is set to its default, or else Firedrake points it (loopy's cache, and pooch's
    # and Matplotlib's with it) into the virtual environment.
    if not env.get("XDG_CACHE_HOME"):
        env["XDG_CACHE_HOME"] = os.path.join(os.path.expanduser("~"), ".cache")
    user_cache = env["XDG_CACHE_HOME"]
    petsc_key = os.path.basename(os.path.dirname(petsc_dir))
    folder = os.path.join(user_cache, "ctrlnet", f"firedrake-{version}-{petsc_key}")
    folder = env.get("FIREDRAKE_CACHE_DIR", folder)
    env.setdefault("PYOP2_CACHE_DIR", os.path.join(folder, "pyop2"))
    env.setdefault("FIREDRAKE_TSFC_KERNEL_CACHE_DIR", os.path.join(folder, "tsfc"))

    # Open MPI refuses root and more ranks than cores unless told: containers are root, tests use
    # three ranks.
    if os.geteuid() == 0:
        env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    env.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")
