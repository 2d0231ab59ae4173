"""The house rules that a program can check: imports point one way, the README names what there is."""

import ast
import hashlib
import re
from pathlib import Path

import pytest

from serve.config import ServeConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAY_IMPORT = {"dgemma_jax": set(), "serve": {"dgemma_jax"}, "tools": {"dgemma_jax"}}
PACKAGES = set(MAY_IMPORT)


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_one_way(package: str) -> None:
    forbidden = PACKAGES - MAY_IMPORT[package] - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & forbidden, path


def test_the_library_needs_no_torch() -> None:
    for package in ("dgemma_jax", "serve"):
        for path in (ROOT / package).rglob("*.py"):
            assert not imported(path) & {"torch", "transformers"}, path


def test_the_readme_names_every_flag() -> None:
    flags = {"--" + name.replace("_", "-") for name in ServeConfig.__dataclass_fields__}
    assert {flag for flag in flags if f"`{flag}" not in README} == set()
    assert {flag for flag in re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)} == flags


def test_the_readme_names_every_endpoint() -> None:
    source = (ROOT / "serve" / "routes.py").read_text(encoding="utf-8")
    paths = set(re.findall(r'"(/[^"]*)"', source))
    assert len(paths) >= 14
    assert {path for path in paths if re.sub(r"\{(\w+).*\}", r"{\1}", path) not in README} == set()


def test_every_package_is_declared_for_installation() -> None:
    declared = re.findall(r'^    "([a-z_.]+)",$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert found <= set(declared)


@pytest.mark.parametrize("page", ["README.md", "checkpoints/demo/README.md"])
def test_no_page_has_a_gap_left_to_fill(page: str) -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|XXX", (ROOT / page).read_text(encoding="utf-8"))


def test_the_model_card_is_about_the_weights_beside_it() -> None:
    weights = (ROOT / "checkpoints/demo/model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (ROOT / "checkpoints/demo/README.md").read_text(encoding="utf-8")
