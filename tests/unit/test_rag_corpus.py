"""What a corpus's files become: ids, texts, hashes; and every kind of broken corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.rag import READERS
from pipelines.rag.config import Corpus
from pipelines.rag.corpus import CorpusText, load_corpus
from pipelines.rag.corpus_html import page_text
from pipelines.stage import UserError


def read(path: Path, **settings: str) -> CorpusText:
    return load_corpus(Corpus(path=str(path), **settings))


def outcome(path: Path) -> CorpusText | str:
    try:
        return read(path)
    except UserError as error:
        return str(error)


def refusal(path: Path, **settings: str) -> str:
    with pytest.raises(UserError) as error:
        read(path, **settings)
    return str(error.value)


def test_folder_gives_documents_in_order_of_their_ids(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "oncall.txt").write_text("Who is on call.")
    (tmp_path / "billing.md").write_text("# Billing")
    (tmp_path / "z.jsonl").write_text('{"id": "b", "text": "two"}\n\n{"id": 7, "text": "seven"}\n')
    corpus = read(tmp_path)
    assert [(document.id, document.text) for document in corpus.documents] == [
        ("7", "seven"),
        ("b", "two"),
        ("billing.md", "# Billing"),
        ("team/oncall.txt", "Who is on call."),
    ]
    assert corpus.warnings == ()
    assert corpus.texts["b"] == "two"


def test_text_is_what_open_gives_with_newline_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n\u2028\u00e9\U0001f469\u200d\U0001f680\x0b".encode())
    with path.open(encoding="utf-8", newline="") as file:
        assert read(path).documents[0].text == file.read()
    assert read(path).documents[0].id == "a.md"


def test_pattern_names_documents_below_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/one.md", "x/deep/two.md", "y/three.md", "x/four.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    corpus = read(tmp_path / "x" / "**" / "*.md")
    assert [document.id for document in corpus.documents] == ["deep/two.md", "one.md"]


def test_hidden_files_are_passed_over_and_unknown_ones_listed(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.md").write_text("no")
    (tmp_path / ".b.md").write_text("no")
    (tmp_path / "c.md").write_text("yes")
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG")
    corpus = read(tmp_path)
    assert [document.id for document in corpus.documents] == ["c.md"]
    assert len(corpus.warnings) == 1
    assert "7 files" in corpus.warnings[0]
    assert "0.png" in corpus.warnings[0]
    assert "and 2 more" in corpus.warnings[0]


def test_documents_without_text_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(" \n\t")
    (tmp_path / "b.md").write_text("")
    (tmp_path / "c.md").write_text("text")
    corpus = read(tmp_path)
    assert [document.id for document in corpus.documents] == ["c.md"]
    assert set(corpus.blank) == {"a.md", "b.md"}
    assert "2 documents have no text" in corpus.warnings[0]


def test_name_without_suffix_finds_the_one_document_that_is_called_so(tmp_path: Path) -> None:
    for name in ("one.md", "two.md", "two.txt", "v1.2"):
        (tmp_path / name).write_text("text")
    corpus = read(tmp_path)
    assert corpus.find("one.md") == corpus.find("one") == "one.md"
    assert corpus.find("two") is None
    assert corpus.find("v1") is None


def test_hash_changes_with_content_and_names_and_pins(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "b.md").write_text("two")
    first = read(tmp_path)
    assert read(tmp_path) is first
    assert read(tmp_path, content_hash=first.hash).documents == first.documents
    (tmp_path / "b.md").rename(tmp_path / "c.md")
    renamed = read(tmp_path)
    assert renamed.hash != first.hash
    assert renamed.text_hash != first.text_hash
    (tmp_path / "c.md").rename(tmp_path / "b.md")
    assert read(tmp_path).hash == first.hash
    (tmp_path / "b.md").write_text("twO")
    assert "has changed since the sweep was begun" in refusal(tmp_path, content_hash=first.hash)


def test_parts_of_ids_and_texts_can_not_be_shifted_under_one_hash(tmp_path: Path) -> None:
    hashes = set()
    for number, (name, text) in enumerate([("ab", "c"), ("a", "bc")]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"id": name, "text": text}))
        hashes.add(read(path).text_hash)
    assert len(hashes) == 2


def test_html_is_the_page_as_it_is_read(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>No</title><style>p {x: y}</style></head><body>
    <script>var a = "<p>no</p>";</script>
    <h1>Leave &amp; rest</h1>
    <p>25   days
    <b>a</b> <i>year</i>.<br>Not more.</p><!-- no -->
    <ul><li>one<li>two</ul>
    <table><tr><th>Day</th><th>Hours</th></tr><tr><td>Mon</td><td>8</td></tr></table>
    <pre>  kept
    as is</pre><template><p>no</p></template>
    <div>un<b>bro</b>ken</div><p>end</body></html>"""
    path = tmp_path / "page.html"
    path.write_text(page)
    assert read(path).documents[0].text == (
        "Leave & rest\n\n25 days a year.\nNot more.\n\none\ntwo\n\nDay\tHours\nMon\t8\n\n  kept\n    as is\n\nunbroken\n\nend\n"
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("<script>x", ""),
        ("<p>a</div></p></p><b>b", "a\n\nb\n"),
        ("<noscript>no<p>no</p></noscript>yes", "yes\n"),
        ("<head><title>no</title><body>yes", "yes\n"),
        ("a<br><br>b<hr/>c", "a\nb\n\nc\n"),
        ("<td>a</td> <td>b</td>", "a\tb\n"),
        ("&lt;p&gt; &#x1F600; &nope;", "<p> \U0001f600 &nope;\n"),
    ],
)
def test_html_that_is_no_model_page(html: str, text: str) -> None:
    assert page_text(html) == text


def test_html_in_the_charset_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes('<meta charset="windows-1252"><p>caf\u00e9</p>'.encode("cp1252"))
    assert read(path).documents[0].text == "caf\u00e9\n"
    path.write_bytes(b'<meta charset="nope"><p>x</p>')
    assert "unknown charset 'nope'" in refusal(path)
    path.write_bytes("<p>caf\u00e9</p>".encode("cp1252"))
    assert "not UTF-8" in refusal(path)


def pdf(*pages: str) -> bytes:
    """A PDF file by hand: a page of text each."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, page in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    body = "%PDF-1.4\n"
    places = []
    for number, entry in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{entry}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return f"{body}{end}startxref\n{len(body)}\n%%EOF\n".encode()


def test_pdf_has_a_form_feed_between_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("First page.", "Second page."))
    assert read(path).documents[0].text == "First page.\fSecond page."
    assert read(path).documents[0].id == "a.pdf"


def test_broken_and_locked_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4\nnothing more")
    assert "can't be read as PDF" in refusal(path)
    import pypdf

    writer = pypdf.PdfWriter()
    writer.add_blank_page(width=10, height=10)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(path)
    assert "locked by a password" in refusal(path)


def test_pdf_without_pypdf_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("x"))
    monkeypatch.setitem(sys.modules, "pypdf", None)
    message = refusal(path)
    assert "needs the package pypdf" in message
    assert "pip install 'stockpot[rag]'" in message


def test_missing_and_empty_corpus(tmp_path: Path) -> None:
    assert "can't be read" in refusal(tmp_path / "absent")
    assert "holds no file that can be read (.md, .markdown, .txt" in refusal(tmp_path)
    assert "holds no file that can be read" in refusal(tmp_path / "*.md")
    (tmp_path / "a.docx").write_bytes(b"PK")
    assert "but 1 of other kinds" in refusal(tmp_path)
    assert "is of no kind that can be read (.md" in refusal(tmp_path / "a.docx")
    (tmp_path / "a.md").write_text("\n")
    assert "no document holds any text" in refusal(tmp_path / "a.md")


def test_binary_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("one\ntwo caf\u00e9".encode("latin-1"))
    assert f"{path}, line 2: not UTF-8 text" in refusal(tmp_path)
    path.write_bytes("text".encode("utf-16"))
    assert "line 1" in refusal(tmp_path)
    path.write_bytes(b"one\n\ntwo\x00three")
    assert f"{path}, line 3: holds a zero byte" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "a"}', "has no key 'text'"),
        ('{"text": "a"}', "has no key 'id'"),
        ('{"id": "a", "text": 3}', "'text' must be text, but is 3"),
        ('{"id": null, "text": "a"}', "'id' must be the document's id"),
        ('{"id": true, "text": "a"}', "'id' must be the document's id"),
        ("[1]", "an object is wanted"),
        ('{"id": "a", "text": ', "not JSON"),
        ('{"id": "a", "text": "\\ud800"}', "half of a surrogate pair"),
        ('{"id": "ok", "text": "again"}', "the id 'ok' stands twice"),
    ],
)
def test_bad_row_is_named_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "ok", "text": "fine"}\n' + row + "\n")
    found = refusal(path)
    assert "a.jsonl, line 2" in found
    assert message in found


def test_rows_may_name_their_keys_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"url": "u", "body": "b"}\n')
    assert read(path, field_id="url", field_text="body").texts == {"u": "b"}
    assert "did you mean" not in refusal(path, field_id="url")
    assert "`corpus.field_text` names the key" in refusal(path, field_id="url")


def test_links_that_leave_the_folder_are_refused_and_others_passed_over(tmp_path: Path) -> None:
    outside = tmp_path / "secret.md"
    outside.write_text("secret")
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.md").write_text("a")
    (folder / "again.md").symlink_to(folder / "deep" / "a.md")
    (folder / "loop").symlink_to(folder)
    assert [document.id for document in read(folder).documents] == ["deep/a.md"]
    link = folder / "deep" / "b.md"
    for target, message in (
        (outside, "leaves the corpus folder"),
        (tmp_path, "leaves"),
        ("nowhere", "link to nothing"),
    ):
        link.symlink_to(target)
        assert message in refusal(folder)
        link.unlink()
    link.symlink_to(outside)
    assert "leaves the corpus folder" in refusal(folder / "**" / "*.md")
    linked = tmp_path / "linked"
    link.unlink()
    linked.symlink_to(folder)
    assert [document.id for document in read(linked).documents] == ["deep/a.md"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("x")
    path.chmod(0)
    assert "can't be read" in refusal(tmp_path)


def test_file_too_large_for_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.rag.corpus as module

    monkeypatch.setattr(module, "LARGEST", 10)
    (tmp_path / "a.md").write_text("x" * 11)
    assert "split it" in refusal(tmp_path)


PIECES = (
    b"<p>", b"</p>", b"<script>", b"<!--", b"<meta charset=", b"utf-16", b"utf-7", b">", b"&#xD800;", b"&#0;", b"<pre>",
    b'{"id": 1, "text": "x"}', b'{"id": "\\ud800", "text": ""}', b"\n", b"[", b"%PDF-1.4", b"\xef\xbb\xbf", b"\xff\xfe",
    b"1 0 obj <<>> endobj", b"trailer << /Root 1 0 R >>", b"startxref\n9\n%%EOF", b"\x00", b"text", b"\x1f\x8b", b"<td>",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    suffix=st.sampled_from(sorted(READERS)),
    content=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)), max_size=12).map(b"".join),
)
def test_any_file_is_read_or_refused_in_words(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(content)
        found = outcome(path)
    if isinstance(found, str):
        assert found.startswith(("corpus: ", str(path)))
    else:
        assert all(document.text.strip() for document in found.documents)
        assert len(found.text_hash) == 64


def test_every_reader_resolves() -> None:
    from pipelines.rag import load_stage

    assert all(callable(load_stage(READERS, suffix)) for suffix in READERS)


def test_reading_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "b.html").write_text("<p>x")
    (tmp_path / "c.pdf").write_bytes(pdf("x"))
    program = (
        "import sys; from pipelines.rag.corpus import load_corpus; from pipelines.rag.config import Corpus; "
        f"print(len(load_corpus(Corpus(path={str(tmp_path)!r})).documents)); "
        "print(*({'torch', 'ray', 'transformers', 'faiss', 'chromadb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["3"]
