"""A contact sheet of a cohort's tissue: one HTML file that needs nothing else, to check by eye.

Cells hold a small thumbnail with its outline, and sort by doubt (where a network was asked), tissue
area or name; those without a result or without tissue come first. What a person flags is listed by
slide id, ready to be annotated anew.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib import parse

import shapely

from pathfm_cli import errors, page
from pathfm_cli.data import cohort, geojson, pictures
from pathfm_cli.wsi import pyramid

NAME = "index.html"
CELL_PX = 280
"""Longer side of a thumbnail on the sheet."""
QUALITY = 75
FIRST = {"error": 2, "empty": 1, "found": 0}
"""Whatever the order, slides without a result come first, then those where nothing was found."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
{mark}<title>Tissue of {count} slides</title>
<meta name="viewport" content="width=device-width">
{policy}
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 0; background: #f4f4f2; color: #222 }}
header {{ position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc;
  padding: 10px 16px; display: flex; gap: 16px; flex-wrap: wrap; align-items: center; z-index: 1 }}
h1 {{ font-size: 16px; margin: 0 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr));
  gap: 12px; padding: 16px }}
figure {{ margin: 0; background: #fff; border: 2px solid #ddd; border-radius: 6px; padding: 6px;
  display: flex; flex-direction: column }}
figure.flagged {{ border-color: #d23 }}
figure a {{ height: {cell}px; display: flex; align-items: center; justify-content: center }}
figcaption {{ margin-top: 6px; overflow-wrap: anywhere }}
.error {{ color: #a00; font-size: 12px; max-height: {cell}px; overflow: auto }}
textarea {{ width: 100%; height: 4em }}
</style></head><body>
<header><h1>{count} slides, {area} mm² of tissue</h1>
<label>sort by <select id="key">{doubt}<option value="area">tissue area</option>
<option value="name">name</option></select></label>
<label><input type="checkbox" id="down" checked> largest first</label>
<label>show <input id="filter" placeholder="part of a name" size="14"></label>
<label><input type="checkbox" id="only"> only flagged</label>
<span id="said"></span></header>
<main>
{cells}
</main>
<footer style="padding: 0 16px 16px"><p>Flagged slides, one a line:</p>
<textarea id="list" readonly></textarea></footer>
<script>
const $ = id => document.getElementById(id), grid = document.querySelector("main");
const cells = [...grid.children];
const number = (cell, key) => cell.dataset[key] === "" ? -1 : Number(cell.dataset[key]);
function arrange() {{
  const key = $("key").value, sign = $("down").checked ? -1 : 1;
  cells.sort((a, b) => key !== "name" && b.dataset.first - a.dataset.first
    || sign * (key === "name" ? a.dataset.name.localeCompare(b.dataset.name)
    : number(a, key) - number(b, key)) || a.dataset.name.localeCompare(b.dataset.name));
  const part = $("filter").value.toLowerCase();
  let shown = 0;
  for (const cell of cells) {{
    const flagged = cell.classList.toggle("flagged", cell.querySelector("input").checked);
    cell.hidden = !cell.dataset.name.toLowerCase().includes(part) || $("only").checked && !flagged;
    cell.style.display = cell.hidden ? "none" : "";
    shown += !cell.hidden;
    grid.append(cell);
  }}
  const flagged = cells.filter(cell => cell.classList.contains("flagged"));
  $("list").value = flagged.map(cell => cell.dataset.name).join("\\n");
  $("said").textContent = `${{shown}} shown, ${{flagged.length}} flagged`;
}}
document.addEventListener("input", arrange);
arrange();
</script></body></html>
"""

_CELL = """<figure data-name="{name}" data-area="{area}" data-doubt="{doubt}" data-first="{first}">
{picture}
<figcaption><label><input type="checkbox"> <b>{name}</b></label><br>{said}</figcaption></figure>"""


def sheet(
    tissue: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    workers: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `index.html` with every slide of a `tissue` artifact, those with errors too.

    Args:
        tissue: the artifact.
        folder: where the sheet goes; its cells link to the previews that `pictures.outlines` made.
        workers: threads; 0 means one per core.
        overwrite: replace a file that is no sheet, too.
        progress: told (done, total).

    Returns:
        The file.

    Raises:
        errors.OutputClash: as `check`.
    """
    check(folder, overwrite=overwrite)
    opened = cohort.open_cohort(tissue)
    frame = opened.table.frame
    slides = {slide.slide: slide for slide in opened.slides}

    def cell(row: Mapping[str, Any]) -> str:
        return _cell(row, slides.get(row["slide"]), opened.reader)

    cells = []
    with futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for number, text in enumerate(pool.map(cell, frame.iter_rows(named=True)), 1):
            cells.append(text)
            progress(number, frame.height)
    area_mm2 = frame["tissue_area_mm2"].sum()
    doubts = frame["tissue_doubt"].is_not_null().any()
    document = _PAGE.format(
        mark=page.SHEET,
        policy=page.policy(scripts=True),
        count=frame.height,
        area=f"{area_mm2:.4g}",
        cell=CELL_PX,
        doubt='<option value="doubt">doubt</option>\n' if doubts else "",
        cells="\n".join(cells),
    )
    file = Path(folder) / NAME
    page.write(file, document)
    return file


def check(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """See that the sheet may be written: nothing is there, or an earlier sheet.

    Raises:
        errors.OutputClash: it is another file.
        errors.Unwritable: nothing can be written there.
    """
    hint = "another --preview folder, or --overwrite"
    page.check(Path(folder) / NAME, page.SHEET, "contact sheet", hint, overwrite=overwrite)


def _cell(row: Mapping[str, Any], slide: pyramid.Slide | None, reader: pyramid.Reader) -> str:
    error, picture = row["error"], ""
    if slide is not None and error is None:
        try:
            picture = _thumbnail(slide, reader, row["geometry"])
        except errors.SlideError as failure:
            error = str(failure)
    link = page.text(parse.quote(geojson.file_for("", row["slide"], ".png").name))
    area, doubt = row["tissue_area_mm2"], row["tissue_doubt"]
    if error is None:
        picture = f'<a href="{link}" target="_blank">{picture}</a>'
        said = f"{area:.4g} mm²" + ("" if doubt is None else f", doubt {doubt:.3f} bit")
    else:
        said = f'<div class="error">{page.text(error)}</div>'
    return _CELL.format(
        name=page.text(row["slide"]),
        area="" if area is None else f"{area:.6g}",
        doubt="" if doubt is None else f"{doubt:.6g}",
        first=FIRST["error" if error is not None else "empty" if not area else "found"],
        picture=picture,
        said=said,
    )


def _thumbnail(slide: pyramid.Slide, reader: pyramid.Reader, wkb: bytes) -> str:
    """An image element that carries its own pixels."""
    side_um = max(slide.width_px0, slide.height_px0) * slide.mpp
    pixels = reader.read_thumbnail(slide, side_um / CELL_PX)
    drawn = pictures.traced(slide, pixels, shapely.from_wkb(wkb), 2)
    buffer = io.BytesIO()
    drawn.save(buffer, format="JPEG", quality=QUALITY)
    return page.image(buffer.getvalue(), drawn.width, drawn.height)
