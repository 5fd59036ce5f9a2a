"""The runner itself: a block that is wrong fails, directives do what README.md says."""

from __future__ import annotations

import pathlib
import textwrap

import pytest
from blocks import BadDirective, find_blocks, run_block, unmet_need


def page(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "page.md"
    path.write_text(textwrap.dedent(text))
    return path


def test_finds_languages_and_lines(tmp_path: pathlib.Path) -> None:
    blocks = find_blocks(
        page(
            tmp_path,
            """\
            # Title
            ```python
            print(1)
            ```
            ```text
            no code
            ```
            <!-- test: exit: 3; prints: hello -->

            ```sh
            echo hello; exit 3
            ```
            """,
        )
    )
    assert [(b.language, b.line) for b in blocks] == [("python", 2), ("bash", 10)]
    assert blocks[1].directives == {"exit": "3", "prints": "hello"}
    run_block(blocks[1], [], tmp_path, "")


def test_failing_block_fails_with_its_output(tmp_path: pathlib.Path) -> None:
    (block,) = find_blocks(page(tmp_path, "```python\nraise ValueError('the cause')\n```\n"))
    with pytest.raises(AssertionError, match="the cause"):
        run_block(block, [], tmp_path, "")


def test_cpp_that_does_not_compile_fails(tmp_path: pathlib.Path) -> None:
    (block,) = find_blocks(page(tmp_path, "```cpp\nint main() { return missing; }\n```\n"))
    with pytest.raises(AssertionError, match="missing"):
        run_block(block, [], tmp_path, "")


def test_wrong_output_fails(tmp_path: pathlib.Path) -> None:
    text = "<!-- test: prints: two -->\n```python\nprint('one')\n```\n"
    (block,) = find_blocks(page(tmp_path, text))
    with pytest.raises(AssertionError, match="two"):
        run_block(block, [], tmp_path, "")


def test_continue_joins_blocks(tmp_path: pathlib.Path) -> None:
    text = (
        "```python\nx = 4\n```\n<!-- test: continue; prints: 5 -->\n```python\nprint(x + 1)\n```\n"
    )
    first, second = find_blocks(page(tmp_path, text))
    run_block(second, [first], tmp_path, "")


def test_file_is_saved_for_later_blocks(tmp_path: pathlib.Path) -> None:
    text = "<!-- test: file: a/b.txt -->\n```bash\nkept\n```\n```bash\ngrep -q kept a/b.txt\n```\n"
    first, second = find_blocks(page(tmp_path, text))
    run_block(first, [], tmp_path, "")
    run_block(second, [first], tmp_path, "")


def test_unknown_directive_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BadDirective, match="no-run"):
        find_blocks(page(tmp_path, "<!-- test: no-run: typo -->\n```python\n```\n"))


def test_need_that_is_absent_skips(tmp_path: pathlib.Path) -> None:
    text = "<!-- test: needs: no_such_module -->\n```python\n```\n"
    (block,) = find_blocks(page(tmp_path, text))
    assert "no_such_module" in (unmet_need(block) or "")
