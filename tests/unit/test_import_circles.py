"""`tools/import_circles.py` finds a circle among Rust files, whichever way a path is written."""

from pathlib import Path

import pytest
from tools.import_circles import CRATES, circles


def crate(root: Path, **files: str) -> list[str]:
    for name, text in {"lib": "mod a;\nmod b;\n", **files}.items():
        file = root / f"{name.replace('__', '/')}.rs"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return circles(root)


@pytest.mark.parametrize(
    "text",
    [
        "use crate::b::B;\n",
        "use super::b;\n",
        "use crate::{b::{self, B}, c};\n",
        "fn f(b: &crate::b::B) {}\n",
        "use crate::B;\n",
        'const QUOTE: char = \'"\';\nuse crate::b::B;\nconst END: &str = "";\n',
    ],
)
def test_two_files_that_import_each_other_are_a_circle(tmp_path: Path, text: str) -> None:
    [fault] = crate(tmp_path, lib="mod a;\nmod b;\nmod c;\npub use b::B;\n", a=text, b="use crate::a::A;\n", c="")
    assert fault.endswith("a.rs b.rs")


def test_a_circle_may_be_long_and_lead_through_a_parent(tmp_path: Path) -> None:
    [fault] = crate(tmp_path, a__mod="mod x;\nuse crate::b::B;\n", a__x="use super::A;\n", b="use crate::a::x::X;\n")
    assert fault.endswith("a/mod.rs a/x.rs b.rs")


@pytest.mark.parametrize(
    "text",
    [
        "// use crate::b::B;\n",
        "/// See [`B`](crate::b::B).\nstruct A;\n",
        "pub(crate) struct A;\npub use crate::b::B;\n",
        "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n    fn f() {}\n}\n",
        "#[cfg(test)]\nuse crate::b::B;\n",
        "use std::b;\n",
    ],
)
def test_what_is_no_import_makes_no_circle(tmp_path: Path, text: str) -> None:
    assert crate(tmp_path, a=text, b="use crate::a::A;\n") == []


def test_a_child_uses_its_parent_and_the_parent_its_methods(tmp_path: Path) -> None:
    assert crate(tmp_path, a="mod x;\nmod tests;\nstruct A;\n", a__x="use super::A;\nimpl A {}\n", b="") == []


@pytest.mark.parametrize("root", CRATES)
def test_the_crates_have_no_circle(root: str) -> None:
    assert circles(Path(root)) == []
