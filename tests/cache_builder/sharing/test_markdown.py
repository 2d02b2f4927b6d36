"""Text in a card says what it says, and does nothing."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_builder.sharing.markdown import markdown_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a|b\n*c*", "a&#124;b &#42;c&#42;"),
        ("a_b*c [x](y)", "a&#95;b&#42;c &#91;x&#93;(y)"),
        ("`c` <script>", "&#96;c&#96; &lt;script&gt;"),
        ("https://host www.host @someone", "https&#58;//host &#119;&#119;&#119;&#46;host &#64;someone"),
        ("it's & \u2028 &amp;", "it&#39;s &amp; &amp;amp;"),
    ],
)
def test_nothing_in_a_text_is_markup_and_its_words_stay(text: str, line: str) -> None:
    assert markdown_line(text) == line


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_is_one_line_that_reads_as_the_text(text: str) -> None:
    line = str(markdown_line(text))
    assert not set(line) & set("|`*_[]~\\:@$<>\n") and len(line.splitlines()) <= 1
    assert html.unescape(line) == " ".join(text.split())
