"""Where does each package's code lie? `datasets/` and `configs/` are installed below `metanet`.

A top-level package named `datasets` would overwrite another project's in a user's environment, so both folders get
their names below `metanet` here. In the repository `metanet/datasets` and `metanet/configs` are links to the folders,
which is what lets type checkers follow an editable install; nothing here depends on the links.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = ("datasets", "configs")

inside = find_packages(str(HERE), include=["metanet", "metanet.*", "symmetry", "symmetry.*"])
packages = [name for name in inside if name.split(".")[1:2] not in ([folder] for folder in FOLDERS)]
package_dir = {}
for folder in FOLDERS:
    package_dir[f"metanet.{folder}"] = folder
    packages.append(f"metanet.{folder}")
    packages += [f"metanet.{folder}.{name}" for name in find_packages(str(HERE / folder))]

setup(packages=packages, package_dir=package_dir)
