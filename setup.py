"""Where does each package's code lie? `datasets/` and `configs/` are installed below `metanet`.

A top-level package named `datasets` would overwrite another project's in a user's environment, so both folders get
their names below `metanet` here. Wheels need nothing else. For an editable install the repository also has the links
`metanet/datasets` and `metanet/configs`: with them the repository's root is a plain import path, written to a `.pth`
file that type checkers and editors follow; without them (a file system that has no links) setuptools falls back to an
import hook, which runs as well but which they do not follow.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = ("datasets", "configs")

inside = find_packages(str(HERE), include=["metanet", "metanet.*", "symmetry", "symmetry.*"])
packages = [name for name in inside if name.split(".")[1:2] not in ([folder] for folder in FOLDERS)]
package_dir = {"": "."}
for folder in FOLDERS:
    packages.append(f"metanet.{folder}")
    packages += [f"metanet.{folder}.{name}" for name in find_packages(str(HERE / folder))]
    if "editable_wheel" not in sys.argv or not (HERE / "metanet" / folder).is_dir():
        package_dir[f"metanet.{folder}"] = folder

setup(packages=packages, package_dir=package_dir)
