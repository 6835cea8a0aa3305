import html
import re
from pathlib import Path

import polars as pl
import pytest
import shapely
from browsers import chromium
from PIL import Image

from pathfm_cli import artifacts, errors
from pathfm_cli.data import contact

ROWS = (
    # slide, tissue in px0, doubt in bits, error
    ("plain", shapely.box(200, 200, 2000, 2500), 0.05, None),
    ("doubtful", shapely.box(200, 200, 900, 900), 0.61, None),
    ("drawn", shapely.box(200, 200, 1900, 2800), None, None),
    ("bare", shapely.MultiPolygon(), 0.0, None),
    ("<b>", None, None, "<i>cut</i> & lost"),
)


@pytest.fixture(scope="module")
def sheet(demo_tissue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo slide: sure, doubtful, outlined by a person, without tissue, and broken."""
    folder = tmp_path_factory.mktemp("sheet")
    table = artifacts.read_table(demo_tissue)
    row = table.frame
    rows = [
        row.with_columns(
            slide=pl.lit(name),
            geometry=pl.lit(None if shape is None else shapely.to_wkb(shape), pl.Binary),
            tissue_area_mm2=pl.lit(None if shape is None else shape.area * 0.499**2 / 1e6),
            tissue_doubt=pl.lit(doubt, pl.Float64),
            error=pl.lit(error, pl.String),
        )
        for name, shape, doubt, error in ROWS
    ]
    out = folder / "tissue.parquet"
    tiles = {"tiles": str(table.file("tiles"))}
    artifacts.write_table(out, pl.concat(rows), artifacts.Header(kind="tissue", files=tiles))
    return contact.sheet(out, folder / "sheet")


def shown(document: str) -> list[str]:
    """Names of the cells in their order; those that are hidden are left out."""
    cells = re.findall(r"<figure ([^>]*)>", document)
    visible = [cell for cell in cells if "display: none" not in cell]
    return [html.unescape(re.search(r'data-name="([^"]*)"', cell)[1]) for cell in visible]


def test_every_slide_has_a_cell_with_its_numbers(sheet: Path) -> None:
    page = sheet.read_text()
    assert sheet.name == "index.html"
    assert sorted(shown(page)) == ["<b>", "bare", "doubtful", "drawn", "plain"]
    assert "0.122 mm², doubt 0.610 bit" in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert "0 mm², doubt 0.000 bit" in page
    assert '<a href="plain.png"' in page and page.count("<a href=") == 4


def test_what_a_slide_says_is_text_not_markup(sheet: Path) -> None:
    page = sheet.read_text()
    assert "<i>" not in page and page.count("<b>") == len(ROWS) and "<b>&lt;b&gt;</b>" in page
    assert 'data-name="&lt;b&gt;"' in page and "&lt;i&gt;cut&lt;/i&gt; &amp; lost" in page


def test_slides_without_a_result_or_tissue_come_first(sheet: Path) -> None:
    page = sheet.read_text()
    first = {
        html.unescape(name): int(rank)
        for name, rank in re.findall(r'data-name="([^"]*)".*data-first="(\d)"', page)
    }
    assert first == {"plain": 0, "doubtful": 0, "drawn": 0, "bare": 1, "<b>": 2}
    assert 'value="doubt"' in page


def test_a_foreign_page_is_not_written_over_and_nobody_sorts_by_no_doubt(
    demo_tissue: Path, tmp_path: Path
) -> None:
    """The demo tissue is of `otsu`, which has no doubt."""
    page = tmp_path / "index.html"
    page.write_text("<p>mine")
    with pytest.raises(errors.OutputClash, match="index.html exists and is no contact sheet"):
        contact.sheet(demo_tissue, tmp_path)
    assert page.read_text() == "<p>mine"
    contact.sheet(demo_tissue, tmp_path, overwrite=True)
    assert 'value="doubt"' not in page.read_text()
    contact.sheet(demo_tissue, tmp_path)


def test_the_page_needs_nothing_from_anywhere(sheet: Path) -> None:
    page = sheet.read_text()
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "default-src 'none'" in page


def test_chromium_sorts_by_doubt_and_then_as_asked(sheet: Path, tmp_path: Path) -> None:
    assert shown(chromium(sheet, "--dump-dom")) == ["<b>", "bare", "doubtful", "plain", "drawn"]
    asked = """<script>
    document.getElementById("key").value = "area";
    document.getElementById("down").checked = false;
    document.getElementById("filter").value = "D";
    document.querySelector('[data-name="drawn"] input').click();
    document.dispatchEvent(new Event("input"));
    </script></body>"""
    page = tmp_path / "asked.html"
    page.write_text(sheet.read_text().replace("</body>", asked))
    document = chromium(page, "--dump-dom")
    assert shown(document) == ["doubtful", "drawn"]
    assert "2 shown, 1 flagged" in document


def test_chromium_draws_the_cells(sheet: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sheet.png"
    chromium(sheet, f"--screenshot={picture}", "--window-size=1280,800")
    image = Image.open(picture).convert("RGB")
    assert image.size == (1280, 800)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert any(g > r + 80 and g > b + 60 for r, g, b in colours), "no green outline is seen"
    assert any(r > b > g + 40 for r, g, b in colours), "no stained tissue is seen"
