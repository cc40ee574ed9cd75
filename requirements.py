"""Prints what pyproject.toml asks for, with all extras: to install it before the package itself."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
every = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
print("\n".join(one.replace(" ", "") for one in every if not one.startswith(project["name"])))
