#!/usr/bin/env bash
# Set up all that ctrlnet needs, step by step, into the checkout's .venv.
#
# What takes long is built once per user, outside any checkout: PETSc, and the wheels compiled against
# it, at a prefix named after PETSc's version and options. (petsc4py and Firedrake record the PETSc they
# were built against and pip's own cache of wheels does not know about that, so it is not used for them.)
# A finished step leaves a stamp named after a hash of its inputs and of the steps before it: a second
# run skips it, a run after an interruption goes on from there.
set -euo pipefail
shopt -s inherit_errexit

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup="$root/.setup"
venv="$root/.venv"
stamps="$venv/stamps"
log="$root/.setup.log"
python=${PYTHON:-python3}
# Other tool chains and environments of the user must not leak into what is built here.
unset PETSC_DIR PETSC_ARCH CC CXX FC F77 CPP CFLAGS CXXFLAGS FFLAGS CPPFLAGS LDFLAGS
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER VIRTUAL_ENV

petsc_version=3.26.0
petsc4py_version=3.26.0
h5py_version=3.16.0
firedrake_version=2026.10.0

petsc_key=$( (echo "$petsc_version"; cat "$setup/petsc-options.txt") | sha256sum | cut -c1-12)
prefix="${XDG_DATA_HOME:-$HOME/.local/share}/ctrlnet/petsc-$petsc_version-$petsc_key"
petsc_dir="$prefix/petsc"
wheels="$prefix/wheels"

steps=7
step=0
chain=$root
skipped=
ran=0

say() { printf '%s\n' "$@"; }

stop() {
    say "" "Set-up stopped at step $step of $steps. The last lines of $log:" ""
    tail -n 25 "$log" | sed 's/^/    /'
    say "" "What to do: $1" "Finished steps are kept: 'make install' goes on from here."
    exit 1
}

is_done() {
    case $1 in
        system_packages) [ -z "$missing" ] ;;
        petsc) [ -e "$prefix/complete" ] && petsc_is_usable >/dev/null 2>&1 ;;
        *) [ -e "$stamps/$1-$chain" ] ;;
    esac
}

# step_of NAME MINUTES FUNCTION ADVICE INPUT...: run FUNCTION unless it is done.
step_of() {
    local name=$1 minutes=$2 body=$3 advice=$4 code began
    shift 4
    step=$((step + 1))
    chain=$( (say "$chain" "$@"; declare -f "$body") | sha256sum | cut -c1-12)
    if is_done "$body"; then
        skipped+="step $step of $steps: $name: done before"$'\n'
        return
    fi
    printf '%s' "$skipped"
    skipped=
    ran=1
    say "step $step of $steps: $name, about $minutes min"
    printf '\n=== step %s: %s: %s\n' "$step" "$name" "$(date -u +%FT%TZ)" >>"$log"
    began=$SECONDS
    # Not as an 'if': that would switch 'set -e' off inside the step.
    set +e
    (set -e; forget_half_installed; "$body") >>"$log" 2>&1
    code=$?
    set -e
    [ $code -eq 0 ] || stop "$advice"
    say "    done in $((SECONDS - began)) s"
    if [ -d "$venv" ]; then
        mkdir -p "$stamps"
        rm -f "$stamps/$body"-*
        : >"$stamps/$body-$chain"
    fi
}

# pip writes a package's RECORD last: without it the package is half there, yet pip takes it for installed.
forget_half_installed() {
    local info
    for info in "$venv"/lib/python3*/site-packages/*.dist-info; do
        [ ! -d "$info" ] || [ -e "$info/RECORD" ] || { echo "half installed: $info"; rm -rf "$info"; }
    done
}

pip() { "$venv/bin/python" -m pip --no-input --disable-pip-version-check "$@"; }

# Only one set-up at a time may build at the prefix; the lock goes with the step's subshell.
lock_prefix() {
    mkdir -p "$prefix"
    exec 9>"$prefix.lock"
    flock -n 9 || { say "    another set-up is building at $prefix: waiting for it" >&3; flock 9; }
}

# build_wheel NAME VERSION: leave the wheel at the prefix, print its path.
build_wheel() {
    local name=$1 version=$2 work unpacked
    local found="$wheels/$name-$version-$python_tag-*.whl"
    if ! compgen -G "$found" >/dev/null; then
        rm -rf "$prefix"/build.* # what an interrupted set-up left: the lock is held
        work=$(mktemp -d "$prefix/build.XXXXXX")
        # shellcheck disable=SC2064
        trap "rm -rf '$work'" EXIT
        mkdir -p "$wheels" "$work/packed"
        pip wheel --no-deps --no-build-isolation --no-cache-dir --no-binary "$name" -w "$work" "$name==$version" >&2
        "$venv/bin/python" -m wheel unpack -d "$work/unpacked" "$work/$name"-*.whl >&2
        unpacked=$(echo "$work/unpacked/$name"-*)
        # Another checkout has its site-packages elsewhere: look for libraries beside oneself instead.
        find "$unpacked" -name '*.so' | while read -r library; do
            patchelf --set-rpath "$(patchelf --print-rpath "$library" | sed -E \
                "s#[^:]*/site-packages/#\$ORIGIN/$(realpath --relative-to="$(dirname "$library")" "$unpacked")/#g")" \
                "$library"
        done
        "$venv/bin/python" -m wheel pack -d "$work/packed" "$unpacked" >&2
        mv "$work/packed"/*.whl "$wheels/"
    fi
    compgen -G "$found"
}

install_wheel() {
    local wheel
    lock_prefix
    wheel=$(build_wheel "$@")
    pip install --no-deps --force-reinstall "$wheel"
}

# minutes_of NAME VERSION MINUTES: less when the wheel is there.
minutes_of() { if compgen -G "$wheels/$1-$2-$python_tag-*.whl" >/dev/null; then echo 0.5; else echo "$3"; fi; }

missing_packages() {
    grep -v '^#' "$setup/system-packages.txt" | while read -r name; do
        [ "$(dpkg-query -W -f='${Status}' "$name" 2>/dev/null)" = 'install ok installed' ] || printf ' %s' "$name"
    done
}

system_packages() {
    $sudo apt-get -o DPkg::Lock::Timeout=300 update
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends $missing
}

virtual_environment() {
    # A folder that was copied or moved here, or whose interpreter has gone, is made anew.
    if ! { "$venv/bin/python" -m pip --version && grep -q " $venv\$" "$venv/pyvenv.cfg"; }; then
        "$python" "$setup/check_python.py"
        "$python" -m venv --clear "$venv"
    fi
    pip install -r "$setup/requirements-build.txt"
}

petsc_is_usable() {
    local feature
    for feature in HDF5 MUMPS PTSCOTCH SCALAPACK METIS; do
        grep -q "PETSC_HAVE_$feature 1" "$petsc_dir/include/petscconf.h" || { echo "PETSc lacks $feature"; return 1; }
    done
    # After an upgrade of the system its libraries have other names.
    ! ldd "$petsc_dir"/lib/libpetsc.so.* | grep 'not found'
}

petsc() {
    lock_prefix
    if [ -e "$prefix/complete" ] && petsc_is_usable; then return; fi
    rm -rf "$prefix/complete" "$wheels"
    local libraries options
    libraries=/usr/lib/$(gcc -print-multiarch)
    # Quoted twice: PETSc's build splits this as a shell does and joins it, unquoted, into a shell line.
    options=$(sed -e "s|@LIB@|$libraries|g" -e "s/.*/'&'/" "$setup/petsc-options.txt" | tr '\n' ' ')
    PETSC_CONFIGURE_OPTIONS="$options --with-make-np=$(nproc)" pip install --no-deps --no-build-isolation \
        --no-cache-dir --upgrade --target "$prefix" "petsc==$petsc_version"
    petsc_is_usable
    : >"$prefix/complete"
}

parallel_h5py() {
    HDF5_MPI=ON HDF5_DIR="/usr/lib/$(gcc -print-multiarch)/hdf5/openmpi" CC=mpicc install_wheel h5py "$h5py_version"
    "$venv/bin/python" -c 'import h5py; assert h5py.get_config().mpi, "h5py was built without MPI"'
}

petsc4py() {
    PETSC_DIR="$petsc_dir" CFLAGS="-O1 -g0" install_wheel petsc4py "$petsc4py_version"
    "$venv/bin/python" -c 'import petsc4py, sys; c = petsc4py.get_config(); assert c["PETSC_DIR"] == sys.argv[1], c' \
        "$petsc_dir"
}

firedrake() {
    PETSC_DIR="$petsc_dir" install_wheel firedrake "$firedrake_version"
    pip install -c "$setup/constraints.txt" "firedrake==$firedrake_version"
}

ctrlnet() {
    pip install --no-build-isolation -c "$setup/constraints.txt" -e "$root[test,dev]"
    local site mpiexec
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp "$setup/ctrlnet_environment.py" "$site/"
    say "import ctrlnet_environment; ctrlnet_environment.apply('$petsc_dir', '$firedrake_version')" \
        >"$site/ctrlnet_environment.pth"
    mpiexec=$(command -v mpiexec.openmpi || PATH="${PATH//$venv\/bin:/}" command -v mpiexec)
    sed "s|@MPIEXEC@|$mpiexec|" "$setup/mpiexec.in" >"$venv/bin/mpiexec"
    chmod +x "$venv/bin/mpiexec"
    "$venv/bin/python" -c 'import firedrake, importlib.util as u; assert u.find_spec("ctrlnet")'
}

exec 3>&1
exec 8>>"$log"
flock -n 8 || { say "Another set-up of this checkout is running: waiting for it."; flock 8; }
trap 'say "" "Interrupted. Finished steps are kept: make install goes on from here."; exit 130' INT TERM

sudo=
missing=$(missing_packages)
if [ -n "$missing" ] && [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; then
        sudo=sudo
    else
        say "System packages are missing that only an administrator can install:" "   $missing" "" \
            "Run this line once as root (or through sudo), then 'make install' again:" "" \
            "    apt-get update && apt-get install -y --no-install-recommends$missing" ""
        exit 1
    fi
fi
# An interpreter that has gone takes the whole environment with it.
"$venv/bin/python" -c '' 2>/dev/null || rm -rf "$stamps"

network="see whether the package index can be reached and whether the disk has room ('df -h . /tmp ~')."
step_of "system packages" 2 system_packages \
    "run the apt-get line by hand and read its message; Debian 12 and Ubuntu 24.04 have all of them."
step_of "virtual environment" 1 virtual_environment "if it is not about Python, $network" "$(cat "$setup/requirements-build.txt")"
python_tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
step_of "PETSc $petsc_version" 9 petsc "$network PETSc's own log is in the lines above." "$petsc_dir"
step_of "parallel h5py $h5py_version" "$(minutes_of h5py "$h5py_version" 2)" parallel_h5py "$network" \
    "$h5py_version" "$python_tag"
step_of "petsc4py $petsc4py_version" "$(minutes_of petsc4py "$petsc4py_version" 4)" petsc4py "$network" \
    "$petsc4py_version" "$petsc_dir"
step_of "Firedrake $firedrake_version" "$(minutes_of firedrake "$firedrake_version" 4)" firedrake "$network" \
    "$firedrake_version" "$(cat "$setup/constraints.txt")"
step_of "ctrlnet" 1 ctrlnet "$network" "$(cat "$root/pyproject.toml" "$setup/ctrlnet_environment.py" "$setup/mpiexec.in")"

if [ $ran = 0 ]; then
    say "Set-up is up to date."
else
    say "Set-up is complete. 'make doctor' checks it, 'make demo' shows what ctrlnet does."
fi
