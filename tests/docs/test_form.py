"""What the test of the pages takes for a command and for its output, and what it says of a page that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import page
from tests.docs.conftest import Hosts
from tests.docs.output import Expected, filled
from tests.docs.page import Command, File, Page
from tests.docs.run import Run


def written(directory: Path, text: str) -> Page:
    path = directory / "page.md"
    path.write_text(text, encoding="utf-8")
    return page.read(path)


def test_a_page_with_all_of_the_form(tmp_path: Path) -> None:
    read = written(
        tmp_path,
        """# Title

```toml title="relay:/etc/x.toml"
port = 1
```

<!-- run
laptop# hidden
-->
<!-- status 2 -->
```console
relay$   one \\
    more
relay$ two <<END
$ no command
END
said

laptop$ three &
```

<!-- not run: no time -->
```console
$ four
```
""",
    )
    assert read.faults == []
    assert read.hosts == ["relay", "laptop"]
    assert read.steps == [
        File("relay", "/etc/x.toml", "port = 1\n", 3),
        Command("laptop", True, "hidden", (), 8),
        Command("relay", False, "one \\\n    more", (), 12),
        Command("relay", False, "two <<END\n$ no command\nEND", ("said",), 14),
        Command("laptop", False, "three &", (), 19, status=2),
    ]
    assert read.skipped == [("no time", Command("", False, "four", (), 24))]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```sh\nls\n```\n", ":1: commands are in blocks of the language console, not sh"),
        ("```bash\nls\n```\n", ":1: commands are in blocks of the language console, not bash"),
        ("```Bash\nls\n```\n", ":1: commands are in blocks of the language console, not Bash"),
        ("```{.sh .x}\nls\n```\n", ":1: commands are in blocks of the language console, not {.sh .x}"),
        ("~~~zsh\nls\n~~~\n", ":1: commands are in blocks of the language console, not zsh"),
        (
            '```console title="x"\n$ ls\n```\n',
            ':1: commands are in blocks of the language console, not console title="x"',
        ),
        ("```text\n$ ls\n```\n", ":1: a block with commands needs the language console"),
        ("```\nmake all\n```\n", ":1: a block with commands needs the language console"),
        ("text\n\n    $ ls\n", ":3: commands are in blocks of the language console"),
        ("1. text\n\n        relay# ls\n", ":3: commands are in blocks of the language console"),
        ("<!-- run ls -->\n", ":1: what is run stands in the lines below"),
        ("```\n$ ls\n```\n", ":1: a block with commands needs the language console"),
        ("```\nrelay# ls\n```\n", ":1: a block with commands needs the language console"),
        ("- a list\n\n  ```sh\n  ls\n  ```\n", ":3: commands are in blocks of the language console, not sh"),
        ("```console\nls\n```\n", ":2: no command is above this output: ls"),
        ("<!-- status 2 -->\n\ntext\n\n```console\n$ ls\n```\n", ":1: no block follows this remark directly"),
        ("<!-- not run: x -->\n", ":1: no block follows this remark directly"),
        ("<!-- not run: -->\n```console\n$ ls\n```\n", ":2: a block that is not run needs a reason"),
        ("<!-- status 2 -->\n```toml\na = 1\n```\n", ":1: only a block with commands has such a remark"),
        ("<!-- status two -->\n```console\n$ ls\n```\n", ":1: this is no exit status: two"),
        ("<!-- run\n$ ls\n", ": Could not find end of '<!-- run"),
    ],
)
def test_a_wrong_form(tmp_path: Path, text: str, fault: str) -> None:
    (found,) = written(tmp_path, text).faults
    assert found.startswith(f"page.md{fault}")


@pytest.mark.parametrize(
    ("lines", "printed"),
    [
        (["one", "two"], "one\ntwo\n"),
        (["one ... three"], "one 2 three\n"),
        (["first", "...", "last"], "first\nlast\n"),
        (["first", "...", "last"], "first\n1\n2\nlast\n"),
        (["until 2026-03-08, 13:05: x"], "until 2027-01-02, 09:59: x\n"),
        (["until 13:05:  x"], "until 2026-11-27 13:05:   x\n"),
        (["join ztj1_AbC..."], "join ztj1_9-_x\n"),
        (["a", "", "b"], "a\n\nb\n\n"),
    ],
)
def test_output_as_expected(lines: list[str], printed: str) -> None:
    assert Expected(lines).match(printed) == {}


@pytest.mark.parametrize(
    ("lines", "printed"),
    [
        (["one", "two"], "one\nthree\n"),
        (["one"], "one\ntwo\n"),
        (["one", "two"], "one\n"),
        (["one ..."], "one\n2\n"),
        (["127.0.0.1:8080"], "127.0.0.1:8081\n"),
        (["id 5f3a..."], "id 77\n"),
        (["join ztj1_AbC..."], "join AbC\n"),
        (["..."], ""),
    ],
)
def test_other_output(lines: list[str], printed: str) -> None:
    found = Expected(lines).match(printed)
    assert (found is None) is (lines != ["..."])


def test_a_name_stands_for_what_was_printed() -> None:
    expected = Expected(["id 5f3a... of 5f3a...", "other 77..."], {"5f3a..."})
    known = expected.match("id c0ffee of c0ffee\nother 7788\n")
    assert known == {"5f3a...": "c0ffee"}
    assert filled("revoke 5f3a...", known) == "revoke c0ffee"
    assert expected.match("id c0ffee of decaf\nother 7788\n") is None
    with pytest.raises(KeyError):
        filled("revoke 8e...", known)


PAGE = """
```console
relay$ intermediate-server address web
198.18.209.62
fd64:...
relay# python3 -m http.server 0 &
relay# id -un; cd /; sudo=1
root
relay# pwd
/
```

<!-- status 2 -->
```console
relay$ intermediate-server address
...
```
"""


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("209", "210", (":3: relay$ intermediate-server address web", "198.18.210.62", "got, exit status 0:")),
        ("address web", "address --wob", (":3: relay$ intermediate-server address --wob", "got, exit status 2:")),
        ("status 2", "status 1", (":15: relay$ intermediate-server address", "wanted, with exit status 1:")),
        ("/\n```", "/root\n```", (":9: relay# pwd", "exit status 0:\n/root", "exit status 0:\n/\n")),
        ("server 0", "server --wob", (":6: relay# python3 -m http.server --wob &", "unrecognized arguments")),
        ("pwd", "cat 5f...", (":9: relay# cat 5f...", "no output above has the word '5f...'")),
    ],
)
def test_a_wrong_page_is_told_with_its_line(hosts: Hosts, tmp_path: Path, right: str, wrong: str, told: str) -> None:
    machines = hosts(["relay"])
    Run(written(tmp_path, PAGE), machines).all()
    assert right in PAGE
    with pytest.raises(AssertionError) as error:
        Run(written(tmp_path, PAGE.replace(right, wrong, 1)), machines).all()
    for text in told:
        assert text in str(error.value)


def test_nothing_a_page_does_stays(hosts: Hosts) -> None:
    machines = hosts(["relay", "laptop"])
    terminal = machines["relay"].terminal(root=True)
    typed = terminal.type("echo x > /etc/ztna-page && mkdir /opt/ztna-page && echo x > intermediate-server/ztna-page")
    while typed.status is None:
        pass
    assert typed.status == 0, typed.printed
    assert machines["relay"].path("/etc/ztna-page").exists()
    assert not machines["laptop"].path("/etc/ztna-page").exists()
    for path in (Path("/etc/ztna-page"), Path("/opt/ztna-page"), page.ROOT / "ztna-page"):
        assert not path.exists()
