"""Exit with an explanation unless this interpreter can make the environment."""

import importlib.util
import os
import sys
import sysconfig

version = ".".join(map(str, sys.version_info[:3]))
found = f"{sys.executable} (Python {version})"
advice = "Choose another one: make install PYTHON=/path/to/python3"
if tuple(sys.version_info[:2]) < (3, 11):
    sys.exit(f"{found} is too old: ctrlnet needs Python 3.11 or newer. {advice}")
if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    sys.exit(f"{found} has no venv module (Debian's is in python3-venv). {advice}")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit(f"{found} has no C headers (Debian's are in python3-dev). {advice}")
