"""Who may import whom: the table below is the architecture, and this test keeps it true."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"mrt": ROOT / "mrt", "mrt_cli": ROOT / "cli"}

# Area (a module or package) -> what its files may import, beside the standard library and themselves. The
# longest matching area counts. "mrt" alone is the package's version and, loaded when used, its functions.
RULES = {
    "mrt": ["mrt.api", "mrt.errors", "mrt.predict"],
    "mrt.errors": [],
    "mrt.files": ["mrt.errors", "mrt.failures"],
    "mrt.failures": ["mrt.errors"],
    "mrt.follow": [],
    "mrt.lock": ["mrt.errors"],
    "mrt.exclusive": [],
    "mrt.plain": [],
    "mrt.seal": [],
    "mrt.arguments": ["mrt.errors"],
    "mrt.boxes": ["torch", "torchvision"],
    "mrt.host": ["torch"],
    "mrt.callable": ["mrt.api"],
    "mrt.remembered": ["mrt.errors", "mrt.files"],
    "mrt.experiment": [
        "mrt",
        "mrt.ablate.studies",
        "mrt.config",
        "mrt.data.registry",
        "mrt.engine",
        "mrt.errors",
        "mrt.models.hub",
        "mrt.plain",
        "mrt.remembered",
    ],
    "mrt.api": [
        *(
            "torch",
            "mrt",
            "mrt.arguments",
            "mrt.config",
            "mrt.engine",
            "mrt.errors",
            "mrt.experiment",
            "mrt.export",
            "mrt.predict",
        ),
    ],
    "mrt.domains": [],
    "mrt.section": ["pydantic", "mrt.config"],  # the configuration as a type only
    "mrt.plugins": [
        "mrt.errors",
        "mrt.models.interface",
        "mrt.parts.base",
        "mrt.section",
    ],  # torch only where there is a plug-in
    "mrt.config": [
        "pydantic",
        "pydantic_settings",
        "mrt.errors",
        "mrt.parts.settings",
        "mrt.plugins",
        "mrt.section",
    ],
    "mrt.ops": ["torch", "mrt.errors"],
    "mrt.models.hub": ["huggingface_hub", "mrt.errors"],
    "mrt.models": [
        *(
            "torch",
            "torchvision",
            "timm",
            "safetensors",
            "numpy",
            "mrt.ops",
            "mrt.boxes",
            "mrt.errors",
            "mrt.files",
        ),
        *("mrt.losses", "mrt.plain", "mrt.plugins"),
    ],
    "mrt.losses": ["torch", "torchvision", "scipy", "numpy", "mrt.boxes", "mrt.errors", "mrt.host"],
    "mrt.adapt": ["mrt.callable", "numpy", "torch", "torchvision", "mrt.boxes", "mrt.errors", "mrt.host"],
    "mrt.data": [
        *("torch", "torchvision", "numpy", "PIL", "mrt.boxes", "mrt.errors", "mrt.failures"),
        *("mrt.files", "mrt.plain"),
    ],
    "mrt.data.limits": ["mrt.errors"],
    "mrt.data.video": ["av", "PIL", "mrt.errors"],
    "mrt.data.archives": ["mrt.data.limits", "mrt.errors", "mrt.files"],
    "mrt.data.headers": ["PIL", "mrt.data.archives", "mrt.errors"],
    "mrt.data.card": ["mrt.data.text", "mrt.errors", "mrt.files", "mrt.plain"],
    "mrt.data.text": [],
    "mrt.data.check": [
        "mrt.data.archives",
        "mrt.data.card",
        "mrt.data.headers",
        "mrt.data.staging",
        "mrt.errors",
    ],
    "mrt.data.registry": ["mrt.data.archives", "mrt.data.card", "mrt.errors"],
    "mrt.data.staging": ["mrt.data.card", "mrt.errors"],
    "mrt.data.palette": [],
    "mrt.data.preview": [
        *("PIL", "mrt.data.archives", "mrt.data.card", "mrt.data.headers", "mrt.data.palette", "mrt.errors"),
    ],
    "mrt.data.convert": [
        *(
            "numpy",
            "PIL",
            "yaml",
            "mrt.data.archives",
            "mrt.data.card",
            "mrt.data.headers",
            "mrt.data.staging",
            "mrt.errors",
            "mrt.files",
        ),
        *("mrt.data.limits", "mrt.data.text", "mrt.data.video", "mrt.plain"),
    ],
    "mrt.data.convert.bridge": ["datumaro", "mrt.data.archives", "mrt.data.convert", "mrt.errors"],
    "mrt.data.synthetic": ["numpy", "PIL", "mrt.data.card", "mrt.data.staging", "mrt.errors"],
    "mrt.evaluate": [
        "mrt.callable",
        "torch",
        "torchvision",
        "numpy",
        "PIL",
        "pycocotools",
        "mrt.data",
        "mrt.boxes",
        "mrt.errors",
    ],
    "mrt.evaluate.unlabelled": [
        *("torch", "numpy", "PIL", "scipy", "mrt.boxes", "mrt.data", "mrt.errors"),
        *("mrt.evaluate.bootstrap", "mrt.models.interface", "mrt.signals"),
    ],
    "mrt.selection": [
        *("torch", "numpy", "PIL", "mrt.config", "mrt.data", "mrt.engine", "mrt.errors"),
        *("mrt.evaluate.bootstrap", "mrt.evaluate.unlabelled", "mrt.models.weights"),
        *("mrt.parts.source_record", "mrt.predict", "mrt.files", "mrt.seal"),
    ],
    "mrt.selection.page": [
        *("numpy", "mrt.api", "mrt.engine", "mrt.evaluate", "mrt.files", "mrt.parts.source_record"),
        *("mrt.plain", "mrt.predict", "mrt.report.page", "mrt.selection"),
    ],
    "mrt.parts": [
        *(
            "torch",
            "safetensors",
            "mrt.adapt",
            "mrt.config",
            "mrt.data.card",
            "mrt.data.dataset",
            "mrt.data.loader",
            "mrt.data.outside",
            "mrt.domains",
            "mrt.errors",
            "mrt.host",
        ),
        *("mrt.evaluate.coco", "mrt.evaluate.labels", "mrt.files", "mrt.losses", "mrt.models", "mrt.section"),
    ],
    "mrt.parts.settings": ["pydantic", "mrt.config", "mrt.data.registry", "mrt.section"],
    "mrt.engine": [
        *(
            "torch",
            "numpy",
            "mrt",
            "mrt.errors",
            "mrt.files",
            "mrt.plain",
            "mrt.boxes",
            "mrt.config",
            "mrt.domains",
            "mrt.plugins",
        ),
        *("mrt.models", "mrt.losses", "mrt.adapt", "mrt.data", "mrt.evaluate", "mrt.ops", "mrt.parts"),
        *("mrt.failures", "mrt.host", "mrt.lock", "mrt.seal"),
    ],
    "mrt.engine.facts": [
        *("pydantic", "typing_extensions", "mrt.config", "mrt.data.card", "mrt.errors", "mrt.files"),
        *("mrt.lock", "mrt.plain", "mrt.seal"),
    ],
    "mrt.engine.report": [
        *("torch", "tensorboard", "mrt.engine.facts", "mrt.engine.loggers", "mrt.errors", "mrt.files"),
        *("mrt.plain", "mrt.seal"),
    ],
    "mrt.engine.loggers": ["wandb", "mlflow", "mrt.errors"],
    "mrt.ablate": [
        *(
            "mrt.config",
            "mrt.data.card",
            "mrt.data.registry",
            "mrt.data.staging",
            "mrt.engine",
            "mrt.errors",
            "mrt.files",
        ),
        *(
            "mrt.exclusive",
            "mrt.follow",
            "mrt.lock",
            "mrt.models.hub",
            "mrt.plain",
            "mrt.plugins",
            "mrt.seal",
            "mrt.section",
        ),
        *("pydantic", "scipy", "submitit", "torch"),
    ],
    "mrt.ablate.selected": [
        *("mrt.api", "mrt.config", "mrt.engine", "mrt.errors", "mrt.evaluate.unlabelled", "mrt.selection"),
    ],
    "mrt.ablate.plot": ["matplotlib", "mrt.ablate", "mrt.files"],
    "mrt.report": [
        *(
            "torch",
            "numpy",
            "PIL",
            "matplotlib",
            "sklearn",
            "threadpoolctl",
            "jinja2",
            "mrt.errors",
            "mrt.files",
            "mrt.config",
        ),
        *("mrt.models", "mrt.data", "mrt.evaluate", "mrt.engine", "mrt.parts", "mrt.plain"),
        *("mrt.seal", "pydantic", "typing_extensions"),
    ],
    "mrt.predict": [
        *("torch", "torchvision", "numpy", "PIL", "av", "supervision", "mrt.errors", "mrt.files"),
        *("mrt.arguments", "mrt.models", "mrt.data", "mrt.evaluate.draw", "mrt.plain"),
    ],
    "mrt.labelling": [
        *("numpy", "mrt", "mrt.api", "mrt.data", "mrt.engine.report", "mrt.errors", "mrt.exclusive"),
        *("mrt.files", "mrt.predict"),
    ],
    "mrt.export": [
        *(
            "torch",
            "torchvision",
            "numpy",
            "PIL",
            "scipy",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "transformers",
        ),
        *("mrt", "mrt.api", "mrt.callable", "mrt.config", "mrt.errors", "mrt.experiment", "mrt.files"),
        *("mrt.arguments", "mrt.data", "mrt.engine.facts", "mrt.engine.load", "mrt.models", "mrt.ops"),
        *("mrt.plain", "mrt.predict", "mrt.report.stored"),
    ],
    "mrt.export.detect": ["numpy", "PIL", "onnxruntime"],
    "mrt_cli": [
        *("typer", "rich", "torch", "PIL", "mrt", "mrt.errors", "mrt.files", "mrt.config"),
        *(
            "mrt.ablate",
            "mrt.api",
            "mrt.data",
            "mrt.engine",
            "mrt.evaluate",
            "mrt.experiment",
            "mrt.export",
            "mrt.labelling",
            "mrt.models.hub",
            "mrt.ops",
        ),
        *(
            "mrt.failures",
            "mrt.follow",
            "mrt.plain",
            "mrt.predict",
            "mrt.remembered",
            "mrt.report",
            "mrt.seal",
            "mrt.selection",
            "mrt.signals",
        ),
    ],
    "mrt.signals": ["mrt.errors"],
}
# Importing these must not import torch: they answer at once, or run in many processes.
TORCH_FREE = [
    "mrt",
    "mrt.config",
    "mrt.experiment",
    "mrt.data.card",
    "mrt.data.registry",
    "mrt.data.headers",
    "mrt.data.preview",
    "mrt.data.check",
    "mrt.data.synthetic",
    "mrt.data.convert",
    "mrt.engine.labels",
    "mrt.engine.report",
    "mrt.engine.whereabouts",
    "mrt.predict.inputs",
    "mrt.signals",
    "mrt.ablate",
]


class Import(NamedTuple):
    module: str
    line: int
    inside_function: bool
    for_types: bool


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, path: Path) -> Iterator[Import]:
    """All imports of a file as absolute names; ``from package import module`` counts as the module."""
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, inside: bool, types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, inside, types)
        elif isinstance(node, ast.ImportFrom):
            above = base.split(".")[: len(base.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield Import(whole if whole in MODULES else origin, node.lineno, inside, types)
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        types = types or (
            isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, types)

    return walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def covers(area: str, module: str) -> bool:
    """``mrt.data`` covers ``mrt.data.card``; ``mrt`` only itself, because everything lies below it."""
    return module == area or (area != "mrt" and module.startswith(area + "."))


def area_of(name: str) -> str:
    return max((area for area in RULES if covers(area, name)), key=len)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_area_may(name):
    area = area_of(name)
    allowed = [area, *RULES[area]]
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{found.line} imports {found.module}"
        for found in imports(name, MODULES[name])
        if found.module.partition(".")[0] not in sys.stdlib_module_names
        and not any(covers(other, found.module) for other in allowed)
    ]
    assert not wrong, f"{area} may import {', '.join(RULES[area]) or 'nothing but the standard library'}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("mrt_cli")])
def test_commands_import_the_program_only_when_they_run(name):
    light = (
        "typer",
        "mrt_cli",
        *("mrt.errors", "mrt.failures", "mrt.follow", "mrt.plain"),
        *(["rich", "mrt.engine.report"] if name in ("mrt_cli.console", "mrt_cli.watchers") else []),
    )
    heavy = [
        f"line {found.line}: {found.module}"
        for found in imports(name, MODULES[name])
        if not (found.inside_function or found.for_types)
        and found.module.partition(".")[0] not in sys.stdlib_module_names
        and not any(covers(other, found.module) for other in light)
    ]
    assert not heavy


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Ways through the graph that come back to where they began; one for each module that is met again."""
    found, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def test_no_circle_of_imports():
    """What is imported when a module is loaded; a function may still import what imports its module."""
    graph = {
        name: {item.module for item in imports(name, path) if not (item.inside_function or item.for_types)}
        & set(MODULES) - {name}
        for name, path in MODULES.items()
    }
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == [["a", "b", "c", "a"]], (
        "a circle is noticed"
    )


def test_no_circle_of_areas_of_the_method():
    """Nor through functions: what a part may know of the engine is what it is handed."""
    areas = (
        "mrt.section",
        "mrt.losses",
        "mrt.adapt",
        "mrt.models",
        "mrt.parts",
        "mrt.engine",
        "mrt.ablate",
        "mrt.report",
        "mrt_cli",
    )
    for number, area in enumerate(areas):
        below = [
            f"{name}:{item.line} imports {item.module}"
            for name, path in MODULES.items()
            if covers(area, name)
            for item in imports(name, path)
            if not item.for_types and any(covers(above, item.module) for above in areas[number + 1 :])
        ]
        assert not below


def test_a_forbidden_import_is_noticed(tmp_path):
    file = tmp_path / "matcher.py"
    file.write_text("from mrt.models import detector\nfrom . import detection\nimport os, typer\n")
    found = {item.module for item in imports("mrt.losses.matcher", file)}
    assert found == {"mrt.models.detector", "mrt.losses.detection", "os", "typer"}
    allowed = ["mrt.losses", *RULES["mrt.losses"]]
    assert {module for module in found if not any(covers(other, module) for other in allowed)} == {
        "mrt.models.detector",
        "os",
        "typer",
    }


def test_torch_free_modules_stay_torch_free(tmp_path):
    import subprocess

    heavy = "sorted({'torch', 'torchvision', 'timm'} & set(sys.modules))"
    code = f"import sys, {', '.join(TORCH_FREE)}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_engine_names_the_autoencoder_only_where_a_plan_is_written():
    texts = {path.name: path.read_text().lower() for path in (ROOT / "mrt" / "engine").glob("*.py")}
    assert [name for name, text in texts.items() if "mae" in text] == ["stages.py"]
