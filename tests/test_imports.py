"""Arrows point down only: who may import whom (see CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (  # from the ground up: a room imports itself and those above it in this list
    "ditmoe.lazy",
    "ditmoe.outside",
    "ditmoe.nn",
    "ditmoe.conditioning",
    "ditmoe.given",
    "ditmoe.modality",
    "ditmoe.distributed",
    "ditmoe.diffusion",
    "ditmoe.moe",
    "ditmoe.checkpoint",
    "ditmoe.text",
    "ditmoe.model",
    "ditmoe.parallel",
    "ditmoe.config",
    "ditmoe.cost",
    "ditmoe.inference",
    "ditmoe.training",
    "ditmoe.pretrained",
    "ditmoe.analysis",
    "ditmoe.pipelines",
    "ditmoe.reporting",
    "ditmoe.serving",
    "ditmoe",  # the commands, and what `import ditmoe` gives
)
OF_THE_CORE = (
    "ditmoe.lazy",
    "ditmoe.outside",
    "ditmoe.nn",
    "ditmoe.conditioning",
    "ditmoe.given",
    "ditmoe.modality",
    "ditmoe.checkpoint",
)
"""What a modality may import of the core."""
FLOORS = ("modalities.shared", "modalities.latent")
"""What modalities may import of each other, the lower one first."""
NAME = re.compile(r"\b((?:ditmoe|modalities)(?:\.[a-z_]\w*)+)(?:\.([A-Z]\w*))?")


def room_of(module: str) -> str:
    """The room that a module stands in: the longest that its name begins with."""
    return max((r for r in ROOMS if module == r or module.startswith(f"{r}.")), key=len)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, but for those that only the type checker sees."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if exists(name) else node.module for name in whole}
    return found


def named(file: Path) -> set[str]:
    """The modules that strings of a file name, docstrings aside: targets, and what Python is told to run."""
    tree, found = ast.parse(file.read_text()), set()
    told = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            found |= {match[1] for match in NAME.finditer(node.value) if exists(match[1])}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_core_knows_no_modality() -> None:
    for file in files("ditmoe"):
        assert not any(name.split(".")[0] == "modalities" for name in imports(file)), file


def test_arrows_point_down() -> None:
    for file in files("ditmoe"):
        own = room_of(module_of(file))
        for name in imports(file):
            if name.split(".")[0] == "ditmoe" and name != "ditmoe":
                assert ROOMS.index(room_of(name)) <= ROOMS.index(own), f"{file} imports {name}"


def test_rooms_are_a_list_without_strangers() -> None:
    here = {f"ditmoe.{p.name}" for p in (ROOT / "ditmoe").iterdir() if (p / "__init__.py").is_file()}
    assert here <= set(ROOMS), here - set(ROOMS)


def test_no_module_waits_for_itself() -> None:
    """Within a room too: whoever imports a file at its head is not imported by it, by whatever way."""
    heads = {module_of(f): _heads(f) for package in ("ditmoe", "modalities") for f in files(package)}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in heads.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in heads:
        visit(module, ())


def _heads(file: Path) -> set[str]:
    """The files that one imports as it is read; a face that only holds it is not counted."""
    own, found = module_of(file), set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if exists(whole) else node.module)
    return {name for name in found if not own.startswith(f"{name}.")}


def test_modalities_meet_on_the_lower_floors_only() -> None:
    for file in files("modalities"):
        parts = module_of(file).split(".")
        own = ".".join(parts[:2])
        allowed = FLOORS[: FLOORS.index(own)] if own in FLOORS else FLOORS
        for name in imports(file) | named(file):
            room = ".".join(name.split(".")[:2])
            if name.split(".")[0] == "modalities" and len(parts) > 1 and name != "modalities":
                assert room in (own, *allowed), f"{file} imports {name}"
        for name in imports(file):
            if name.split(".")[0] == "ditmoe":
                assert room_of(name) in OF_THE_CORE, f"{file} imports {name}"


def test_targets_name_faces() -> None:
    """What a configuration or a saved folder names is a package and a class: files may move, faces stay."""
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        for target in re.findall(r"_target_: *(\S+)", file.read_text()):
            module = target.rpartition(".")[0]
            if module.split(".")[0] in ("ditmoe", "modalities"):
                assert (ROOT / module.replace(".", "/") / "__init__.py").is_file(), f"{file}: {target}"
    for file in [*files("ditmoe"), *files("modalities")]:
        for target in re.findall(r"\"_target_\": \"([\w.]+)\"", file.read_text()):
            module = target.rpartition(".")[0]
            assert (ROOT / module.replace(".", "/") / "__init__.py").is_file(), f"{file}: {target}"
