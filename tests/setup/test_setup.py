"""The set-up and the doctor: their logic, run with a fake tool chain in seconds."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import doctor
import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / ".setup"

FAKES = {
    "id": "echo ${FAKE_UID:-0}",
    "sudo": "exit 1",
    "gcc": "echo x86_64-linux-gnu",
    "patchelf": "exit 0",
    "apt-get": 'echo "apt-get $*" >>"$CALLS"',
    "dpkg-query": """
        for name; do :; done
        case " ${FAKE_MISSING:-} " in *" $name "*) exit 1 ;; esac
        printf 'install ok installed'
    """,
    # Stands for the interpreter, venv, pip and wheel: it leaves the files that the set-up looks for.
    "python3": r"""
        last=${!#}
        here=$(dirname "$(dirname "$0")")
        echo "$*" >>"$CALLS"
        after() { local previous=; for word in "${words[@]}"; do [ "$previous" != "$1" ] || echo "$word"
                  previous=$word; done; }
        words=("$@")
        case "$*" in *"${FAKE_FAIL:-nothing fails}"*) echo "a fake failure"; exit 1 ;; esac
        case "$*" in *"${FAKE_HANG:-nothing hangs}"*) sleep 60 ;; esac
        case "$*" in
            *"-m venv"*)
                mkdir -p "$last/bin"
                cp "$0" "$last/bin/python"
                echo "command = $0 -m venv --clear $last" >"$last/pyvenv.cfg" ;;
            *"--target"*)
                [ -z "${FAKE_SLOW:-}" ] || sleep "$FAKE_SLOW"
                petsc=$(after --target)/petsc
                mkdir -p "$petsc/include" "$petsc/lib"
                for name in ${FAKE_FEATURES:-HDF5 MUMPS PTSCOTCH SCALAPACK METIS}; do
                    echo "#define PETSC_HAVE_$name 1"
                done >"$petsc/include/petscconf.h"
                : >"$petsc/lib/libpetsc.so.3" ;;
            *"pip "*" wheel "*) : >"$(after -w)/${last/==/-}-cp311-cp311-linux_x86_64.whl" ;;
            *"wheel unpack"*)
                name=$(basename "$last")
                mkdir -p "$(after -d)/${name%%-cp*}" ;;
            *"wheel pack"*) : >"$(after -d)/$(basename "$last")-cp311-cp311-linux_x86_64.whl" ;;
            *version_info*) echo cp311 ;;
            *purelib*)
                mkdir -p "$here/lib/python3.11/site-packages"
                echo "$here/lib/python3.11/site-packages" ;;
        esac
    """,
}


class Machine:
    """A home and a tool chain that only pretend; checkouts of the set-up files in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls = folder / "calls"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, body in FAKES.items():
            path = bin_folder / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        self.environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "CALLS": str(self.calls),
        }

    def checkout(self, name: str = "checkout") -> Path:
        root = self.folder / name
        root.mkdir()
        shutil.copytree(SETUP, root / ".setup")
        shutil.copy(ROOT / "pyproject.toml", root)
        return root

    def start(self, root: Path, **settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [root / ".setup" / "install.sh"],
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Started in the background, a shell and all below it would leave Ctrl-C unheard.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def install(self, root: Path, **settings: str) -> tuple[int, str, str]:
        """Run the set-up; return its exit code, its output and the calls of the fake tools."""
        self.calls.write_text("")
        process = self.start(root, **settings)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output, self.calls.read_text()

    @property
    def prefix(self) -> Path:
        (found,) = (self.folder / "home/.local/share/ctrlnet").glob("petsc-*[0-9a-f]")
        return found


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def started(output: str) -> list[int]:
    """The numbers of the steps that ran."""
    return [int(k) for k in re.findall(r"^step (\d) of 7: .*, about [\d.]+ min$", output, re.M)]


def test_missing_packages_without_root_give_the_exact_line(machine):
    root = machine.checkout()
    missing = {"FAKE_MISSING": "flex libopenmpi-dev", "FAKE_UID": "1000"}
    code, output, calls = machine.install(root, **missing)
    assert code == 1
    line = "apt-get update && apt-get install -y --no-install-recommends flex libopenmpi-dev"
    assert f"    {line}\n" in output
    assert calls == "" and not (root / ".venv").exists(), "nothing may be done before the packages are there"


def test_missing_packages_as_root_are_installed(machine):
    code, output, calls = machine.install(machine.checkout(), FAKE_MISSING="flex")
    assert code == 0, output
    assert re.search(r"^apt-get .*install -y --no-install-recommends flex$", calls, re.M)
    assert started(output) == [1, 2, 3, 4, 5, 6, 7]


def test_second_run_does_nothing(machine):
    root = machine.checkout()
    code, output, _ = machine.install(root)
    assert code == 0, output
    assert started(output) == [2, 3, 4, 5, 6, 7]
    code, output, calls = machine.install(root)
    assert (code, output) == (0, "Set-up is up to date.\n")
    assert "pip" not in calls


def test_failure_shows_the_log_and_the_next_run_resumes(machine):
    root = machine.checkout()
    code, output, _ = machine.install(root, FAKE_FAIL="--no-binary firedrake")
    assert code == 1
    assert "Set-up stopped at step 6 of 7" in output and "    a fake failure\n" in output
    assert "What to do: " in output
    code, output, calls = machine.install(root)
    assert code == 0, output
    assert "step 5 of 7: petsc4py 3.26.0: done before" in output
    assert started(output) == [6, 7]
    assert "petsc4py==" not in calls


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_set_up_resumes(machine, how):
    root = machine.checkout()
    process = machine.start(root, FAKE_HANG="wheel unpack")
    deadline = time.monotonic() + 30
    while not list(machine.folder.glob("home/.local/share/ctrlnet/petsc-*/build.*/h5py*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, how)
    output, _ = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert "Interrupted. Finished steps are kept" in output
    code, output, _ = machine.install(root)
    assert code == 0, output
    assert started(output) == [4, 5, 6, 7]
    assert not list(machine.prefix.glob("build.*"))


def test_half_installed_package_is_forgotten(machine):
    root = machine.checkout()
    machine.install(root, FAKE_FAIL="petsc4py==")
    site = root / ".venv/lib/python3.11/site-packages"
    packages = {"whole-1.dist-info": ["METADATA", "RECORD"], "half-1.dist-info": ["METADATA"]}
    for name, files in packages.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).touch()
    assert machine.install(root)[0] == 0
    assert [p.name for p in site.glob("*.dist-info")] == ["whole-1.dist-info"]


def test_second_checkout_builds_nothing(machine):
    assert machine.install(machine.checkout("first"))[0] == 0
    code, output, calls = machine.install(machine.checkout("second"))
    assert code == 0, output
    assert "--target" not in calls and " wheel --no-deps" not in calls
    assert started(output) == [2, 4, 5, 6, 7]


def test_two_checkouts_at_once_build_petsc_once(machine):
    machine.calls.write_text("")
    processes = [machine.start(machine.checkout(name), FAKE_SLOW="1") for name in ("first", "second")]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    calls = machine.calls.read_text()
    assert calls.count("--target") == 1
    assert calls.count(" wheel --no-deps") == 3
    assert sum("waiting for it" in output for output in outputs) >= 1


def test_changed_pins_repeat_only_what_depends_on_them(machine):
    root = machine.checkout()
    machine.install(root)
    with open(root / ".setup/constraints.txt", "a") as file:
        file.write("# another pin\n")
    code, output, _ = machine.install(root)
    assert code == 0
    assert started(output) == [6, 7]


def test_petsc_that_lacks_a_library_is_refused(machine):
    root = machine.checkout()
    code, output, _ = machine.install(root, FAKE_FEATURES="HDF5 MUMPS PTSCOTCH METIS")
    assert code == 1 and "PETSc lacks SCALAPACK" in output
    code, output, _ = machine.install(root)
    assert code == 0 and started(output) == [3, 4, 5, 6, 7]


def test_removed_petsc_is_built_again(machine):
    root = machine.checkout()
    machine.install(root)
    shutil.rmtree(machine.prefix)
    code, output, _ = machine.install(root)
    assert code == 0 and started(output) == [3]


def test_moved_checkout_gets_a_new_environment(machine):
    root = machine.checkout()
    machine.install(root)
    moved = root.rename(machine.folder / "moved")
    code, output, calls = machine.install(moved)
    assert code == 0, output
    assert f"-m venv --clear {moved}/.venv" in calls


def test_prefix_is_named_after_version_and_options(machine):
    machine.install(machine.checkout())
    content = b"3.26.0\n" + (SETUP / "petsc-options.txt").read_bytes()
    assert machine.prefix.name == f"petsc-3.26.0-{hashlib.sha256(content).hexdigest()[:12]}"
    assert (machine.prefix / "complete").exists()


def test_launcher_permits_root_and_forgets_a_singleton(machine):
    root = machine.checkout()
    variables = "$OMPI_ALLOW_RUN_AS_ROOT $OMPI_MCA_btl $OMPI_MCA_ess $PMIX_RANK $OMPI_MCA_orte_launch"
    (machine.folder / "bin/mpiexec.openmpi").write_text(f'#!/bin/sh\necho {variables} "$*"\n')
    (machine.folder / "bin/mpiexec.openmpi").chmod(0o755)
    machine.install(root)
    # What MPI_Init leaves in a process that was not started by mpiexec.
    singleton = {"PMIX_RANK": "0", "OMPI_MCA_ess": "singleton", "OMPI_MCA_orte_launch": "1"}
    users = {"PATH": os.environ["PATH"], "OMPI_MCA_btl": "self"}
    command = [root / ".venv/bin/mpiexec", "-n", "2"]
    told = subprocess.run(command, env=users | singleton, capture_output=True, text=True)
    assert told.stdout.split() == ["1", "self", "-n", "2"]


def environment_after(code: str, **variables: str) -> dict[str, str]:
    """The environment that the installed module leaves behind."""
    script = f"{code}\nimport os\nfor item in os.environ.items(): print('='.join(item))"
    command = [sys.executable, "-S", "-c", script]
    environment = {"PYTHONPATH": str(SETUP), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/home/user"}
    told = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


APPLY = """
import sys, ctrlnet_environment
sys.prefix = "/venv"
ctrlnet_environment.apply("/prefix/petsc-1-abc/petsc", "7")
"""


def test_environment_needs_no_export():
    env = environment_after(APPLY, PETSC_DIR="/another", PETSC_ARCH="arch-linux")
    assert env["PETSC_DIR"] == "/prefix/petsc-1-abc/petsc" and "PETSC_ARCH" not in env
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["PATH"].split(":")[0] == "/venv/bin"
    assert env["PYOP2_CACHE_DIR"] == "/home/user/.cache/ctrlnet/firedrake-7-petsc-1-abc/pyop2"
    assert env["FIREDRAKE_TSFC_KERNEL_CACHE_DIR"].startswith("/home/user/.cache/ctrlnet/")


def test_environment_lets_the_user_win():
    mine = {"OMP_NUM_THREADS": "4", "PYOP2_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/cache"}
    env = environment_after(APPLY, **mine)
    assert {name: env[name] for name in mine} == mine
    assert env["FIREDRAKE_TSFC_KERNEL_CACHE_DIR"] == "/cache/ctrlnet/firedrake-7-petsc-1-abc/tsfc"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sys.version_info = (3, 10, 4, 'final', 0)", "Python 3.10.4) is too old: ctrlnet needs Python 3.11"),
        ("import importlib.util as u; u.find_spec = lambda name: None", "has no venv module"),
        ("import sysconfig; sysconfig.get_path = lambda name: '/nowhere'", "has no C headers"),
    ],
)
def test_unfit_interpreter_is_refused(setting, message):
    code = f"import sys, runpy\n{setting}\nrunpy.run_path({str(SETUP / 'check_python.py')!r})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 1
    assert message in told.stderr and "make install PYTHON=" in told.stderr


def test_every_dependency_is_pinned():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (SETUP / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {normal(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        name, _, version = requirement.partition("==")
        assert normal(name) in pins, f"{name} has no exact version in .setup/constraints.txt"
        assert version in ("", pins[normal(name)])
    versions = re.findall(r"^(\w+)_version=(.+)$", (SETUP / "install.sh").read_text(), re.M)
    for name, version in versions:
        assert name == "petsc" or pins[name] == version
    for line in (SETUP / "requirements-build.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert pins.get(normal(name), version) == version


def test_doctor_reports_what_is_wrong_and_what_to_do(capsys):
    report = doctor.Report()
    assert report.close() == 0
    report.trouble("the tap drips", "close it")
    assert report.close() == 1
    assert "the tap drips\n    What to do: close it." in capsys.readouterr().out


def test_doctor_survives_a_failing_probe():
    with pytest.raises(doctor.ProbeError, match="exit code 1\n.*no such thing"):
        doctor.run_probe("raise SystemExit('no such thing')")
    with pytest.raises(doctor.ProbeError, match="within 0 s"):
        doctor.run_probe("import time; time.sleep(9)", timeout=0.2)
    with pytest.raises(doctor.ProbeError) as caught:
        doctor.run_probe("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert "another kind of processor" in caught.value.remedy
    assert doctor.run_probe("print('noise'); print('{\"a\": 1}')") == {"a": 1}


def test_doctor_notices_ranks_that_disagree(monkeypatch, capsys):
    values = iter([1.0, 1.0 + 1e-9])
    ranks = iter([1, 2])
    monkeypatch.setattr(doctor, "run_probe", lambda *_: {"ranks": next(ranks), "values": [next(values)]})
    report = doctor.Report()
    doctor.check_poisson(report)
    assert len(report.troubles) == 1 and "one and two ranks differ by 1.0e-09" in report.troubles[0][0]


def test_doctor_imports_nothing_heavy():
    load = f"import runpy, sys; runpy.run_path({doctor.__file__!r})"
    code = f"{load}; print(sorted({{'numpy', 'firedrake', 'mpi4py'}} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
