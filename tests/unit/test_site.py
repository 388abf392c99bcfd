"""The site of the pages: what keeps it from being built."""

import shutil
from pathlib import Path

import pytest
from tools.build_site import SiteError, build, navigation, stage

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "# Program\n\nSee [the documents](docs/README.md) and [a sample](deploy/a.toml).\n",
    "docs/README.md": """\
# Documents

| page | for |
|---|---|
| [../README.md](../README.md) | first steps |
| **Reference** | |
| [keys.md](keys.md) | all keys |
| **Decisions** | |
| [why/README.md](why/README.md) | reasons |
""",
    "docs/keys.md": '# Keys\n\n## Of the host\n\n<!-- run -->\n```toml title="/etc/a.toml"\na = 1\n```\n',
    "docs/why/README.md": "# Why\n\n| page | |\n|---|---|\n| [so.md](so.md) | so |\n",
    "docs/why/so.md": "# So\n\nSee [keys](../keys.md#of-the-host).\n",
    "docs/site.css": "",
    "deploy/a.toml": "a = 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small tree whose site is whole."""
    tree = tmp_path / "tree"
    for name, text in PAGES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "mkdocs.yml", tree)
    return tree


def test_each_page_of_this_tree_is_in_the_index(tmp_path: Path) -> None:
    stage(ROOT, tmp_path)
    assert navigation(tmp_path)


def test_the_navigation_is_the_index(root: Path) -> None:
    assert navigation(root) == [
        "README.md",
        "docs/README.md",
        {"Reference": ["docs/keys.md"]},
        {"Decisions": ["docs/why/README.md", "docs/why/so.md"]},
    ]


def test_a_whole_tree_becomes_a_site(root: Path, tmp_path: Path) -> None:
    (root / "deploy" / "agent.token").write_text("secret", encoding="utf-8")
    site = build(root, tmp_path / "site")
    assert not list(site.rglob("*.token"))
    assert (site / "deploy" / "a.toml").is_file()
    assert "/etc/a.toml" in (site / "docs" / "keys.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "text", "why"),
    [
        ("docs/new.md", "# New\n", "docs/new.md: in no index"),
        ("docs/README.md", "| [keys.md](keys.md) | again |\n", "docs/keys.md: 2 times"),
        ("docs/README.md", "| **Runbooks** |\n", "'| **Runbooks** |' is neither"),
        ("docs/README.md", "| [gone.md](gone.md) | gone |\n", "page does not exist"),
        ("docs/keys.md", "\n[x](gone.md)\n", "page does not exist"),
        ("docs/keys.md", "\n[x](why/so.md#gone)\n", "anchor does not exist"),
        ("docs/keys.md", "\n[x](#gone)\n", "anchor does not exist"),
        ("docs/keys.md", "\n[x](../deploy/gone.toml)\n", "docs/keys.html: ../deploy/gone.toml leads nowhere"),
        ("docs/keys.md", "\n[x](../deploy)\n", "docs/keys.html: ../deploy leads nowhere"),
        ("docs/keys.md", "\n![x](https://example.com/x.png)\n", "asks another host for https://example.com/x.png"),
        ("docs/keys.md", "\nA list:\n- one\n", "docs/keys.md: the site shows"),
        ("docs/keys.md", "\n- one\n  - two\n", "docs/keys.md: the site shows"),
    ],
)
def test_a_fault_of_a_page_fails_the_build(root: Path, tmp_path: Path, page: str, text: str, why: str) -> None:
    with (root / page).open("a", encoding="utf-8") as file:
        file.write(text)
    with pytest.raises(SiteError) as error:
        build(root, tmp_path / "site")
    assert why in str(error.value)
