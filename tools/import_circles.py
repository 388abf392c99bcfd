"""Refuse an import circle among the Rust files of a crate.

A path that begins with `crate`, `super`, `self` or a child module is an import. The declaration of a module is none.
By `pub use` a parent passes a name on: who imports that name imports the file that has it. Tests do not count.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

CRATES = ("crates/engine/src", "crates/netstack/src")

Module = tuple[str, ...]

_COMMENT, _CHAR = r"//[^\n]*|/\*.*?\*/", r"'(?:\\.|[^'\\])'"
_TEXT = r'\br(#*)".*?"\1|"(?:\\.|[^"\\])*"'
_IGNORED = re.compile("|".join([_COMMENT, _CHAR, _TEXT]), re.DOTALL)
_VISIBLE = re.compile(r"\bpub\([^)]*\)")
_TEST = re.compile(r"#\[cfg\(test\)\]\s*")
_USE = re.compile(r"(pub\s+)?\buse\s+([^;]+);")
_PATH = re.compile(r"\b(?:crate|super|self)(?:::\w+)+")


def main() -> int:
    """Print the circles; the exit status says whether there are any."""
    faults = [fault for crate in CRATES for fault in circles(Path(crate))]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def circles(root: Path) -> list[str]:
    """One line for each circle of imports among the files below `root`."""
    files = {module_of(file.relative_to(root)): file for file in sorted(root.rglob("*.rs"))}
    texts = {module: without_tests(file.read_text()) for module, file in files.items()}
    tests = {(*module, name) for module, (_, names) in texts.items() for name in names}
    crate = Crate({module: text for module, (text, _) in texts.items() if module not in tests})
    names = {module: str(file.relative_to(root)) for module, file in files.items()}
    return [
        f"{root}: the files of a circle import each other: {' '.join(sorted(names[m] for m in circle))}"
        for circle in components({module: crate.imports(module) for module in crate.texts})
    ]


def module_of(file: Path) -> Module:
    """The path of the module that a file is."""
    parts = file.with_suffix("").parts
    return parts[:-1] if parts[-1] in {"mod", "lib", "main"} else parts


def without_tests(text: str) -> tuple[str, list[str]]:
    """A file without comments, texts and the items for tests alone; and the names of its test modules."""
    text, tests = _VISIBLE.sub("pub", _IGNORED.sub(" ", text)), []
    while found := _TEST.search(text):
        end, depth = found.end(), 0
        while end < len(text) and not (depth == 0 and text[end] in ";}"):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if depth == 0 and text[end - 1] == "}":
                break
        item = text[found.end() : end]
        tests += re.findall(r"^mod (\w+)", item)
        text = text[: found.start()] + text[end + (text[end : end + 1] == ";") :]
    return text, tests


def leaves(tree: str) -> Iterator[tuple[str, str]]:
    """The paths of a use declaration, each with the name it is known by."""
    tree = " ".join(tree.split())
    prefix, brace, rest = tree.partition("{")
    if not brace:
        path, _, alias = tree.partition(" as ")
        path = path.strip().removesuffix("::self")
        yield path, alias.strip() or path.rpartition("::")[2]
        return
    part, depth = "", 0
    for char in rest.strip().removesuffix("}") + ",":
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if part.strip():
                yield from leaves(prefix + part.strip())
            part = ""
        else:
            part += char


class Crate:
    """The modules of a crate and what they pass on."""

    def __init__(self, texts: dict[Module, str]) -> None:
        self.texts = texts
        self.exports: dict[tuple[Module, str], str] = {}
        for module, text in texts.items():
            for public, tree in _USE.findall(text):
                if public:
                    self.exports.update({(module, name): path for path, name in leaves(tree)})

    def imports(self, module: Module) -> set[Module]:
        """The modules whose names this one uses."""
        private = [path for public, tree in _USE.findall(self.texts[module]) if not public for path, _ in leaves(tree)]
        body = _USE.sub(" ", self.texts[module])
        inline = _PATH.findall(body)
        children = [m[-1] for m in self.texts if m and m[:-1] == module]
        inline += [child for child in children if re.search(rf"(?<![\w:]){child}::\w", body)]
        found = {self.resolve(module, path) for path in private + inline}
        return {other for other in found if other is not None and other != module}

    def resolve(self, module: Module, path: str, depth: int = 0) -> Module | None:
        """The module that a path leads to; none where it leads out of the crate."""
        first, *parts = path.split("::")
        if first == "crate":
            at: Module = ()
        elif first == "super":
            at = module[:-1]
        elif first == "self":
            at = module
        elif (*module, first) in self.texts:
            at = (*module, first)
        else:
            return None
        while parts and parts[0] == "super":
            at, parts = at[:-1], parts[1:]
        while parts and (*at, parts[0]) in self.texts:
            at, parts = (*at, parts[0]), parts[1:]
        if parts and (at, parts[0]) in self.exports and depth < 8:
            target = "::".join([self.exports[at, parts[0]], *parts[1:]])
            return self.resolve(at, target, depth + 1)
        return at


def components(edges: dict[Module, set[Module]]) -> list[set[Module]]:
    """The sets of modules that reach each other, of two and more."""
    reach: dict[Module, set[Module]] = {}
    for start in edges:
        seen, todo = set[Module](), [start]
        while todo:
            for other in edges.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        reach[start] = seen
    circles = {frozenset(m for m in reach[start] if start in reach.get(m, set())) for start in edges}
    return sorted((set(circle) for circle in circles if len(circle) > 1), key=sorted)


if __name__ == "__main__":
    sys.exit(main())
