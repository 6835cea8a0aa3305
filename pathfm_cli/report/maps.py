"""Embeddings on the page: a plane that shows how they lie, coloured by class."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import artifacts, page
from pathfm_cli.report import charts, inputs, tables

MOST_ROWS = 2000
"""More rows are thinned evenly; a page must stay small enough for a phone."""
F64 = npt.NDArray[np.float64]


def section(embeddings: inputs.Embeddings) -> str:
    """Everything about one `embeddings` artifact."""
    header = embeddings.header
    kind = pl.read_parquet_schema(embeddings.path)["embedding"]
    if isinstance(kind, pl.Array) and isinstance(kind.inner, pl.Array):
        return _of_tokens(header, kind.shape)
    frame = artifacts.read_table(embeddings.path, "embeddings").frame
    usable = frame.filter(pl.col("embedding").is_not_null())
    facts = {
        "rows": frame.height,
        "without a vector": frame.height - usable.height or None,
        "model": header.settings.get("model"),
        "from": ", ".join(header.parents),
        "id": header.id,
    }
    thin = usable.gather_every(max(1, -(-usable.height // MOST_ROWS)))
    vectors = thin["embedding"].to_numpy().astype(np.float64) if thin.height > 2 else None
    if vectors is None or not np.isfinite(vectors).all():
        drawn = '<p class="note">Too few vectors, or vectors that are not finite: no map.</p>'
    else:
        drawn = f'<div class="charts">{"".join(_planes(thin, vectors))}</div>'
    return tables.facts(facts) + drawn + tables.settings(header.settings)


def _of_tokens(header: artifacts.Header, shape: tuple[int, ...]) -> str:
    """What is said of patch tokens, (T, K) an image: too many to read, and no point each."""
    facts = {
        "rows": header.rows,
        "without a vector": header.failed or None,
        "model": header.settings.get("model"),
        "from": ", ".join(header.parents),
        "id": header.id,
    }
    said = f'<p class="note">{shape[0]} patch tokens of {shape[1]} numbers an image: no map.</p>'
    return tables.facts(facts) + said + tables.settings(header.settings)


def principal(vectors: F64) -> tuple[F64, F64]:
    """The first two principal components (N, 2), and the share of the variance of each (2,)."""
    centred = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((singular**2).sum()) or 1.0
    return left[:, :2] * singular[:2], singular[:2] ** 2 / total


def _planes(rows: pl.DataFrame, vectors: F64) -> list[str]:
    columns = [name for name in ("label", "split", "slide") if name in rows.columns]
    by = columns[0] if columns else None
    found, shares = principal(vectors)
    shown = ", ".join(f"{share:.0%}" for share in shares)
    planes = [_plane(f"PCA: {shown} of the variance", rows, by, found)]
    if (umap := _umap(vectors)) is not None:
        planes.append(_plane("UMAP: 15 neighbours by cosine", rows, by, umap))
    else:
        planes.append(f'<p class="note">{page.text("For UMAP too: pip install umap-learn")}</p>')
    return planes


def _plane(title: str, rows: pl.DataFrame, by: str | None, places: F64) -> str:
    groups = rows[by].cast(pl.String).fill_null("none") if by else pl.Series(["all"] * rows.height)
    names = groups.value_counts(sort=True)[groups.name].to_list()
    shown = sorted(names[: charts.COLOURS - (len(names) > charts.COLOURS)])
    series = []
    for name in [*shown, *(["others"] if len(names) > len(shown) else [])]:
        chosen = (
            groups.is_in(shown).not_() if name == "others" and name not in shown else groups == name
        )
        at = np.flatnonzero(chosen.to_numpy())
        ids = rows["id"].gather(at).to_list()
        labels = [f"{name}: {one}" for one in ids]
        series.append(charts.Series(name, places[at, 0].tolist(), places[at, 1].tolist(), labels))
    return charts.scatter(f"{title}, by {by}" if by else title, series, x="", y="")


def _umap(vectors: F64) -> F64 | None:
    """A UMAP of the vectors with a fixed seed; None where the package is absent."""
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError:
        return None
    near = min(15, len(vectors) - 1)
    reducer = umap.UMAP(n_neighbors=near, metric="cosine", random_state=0, n_jobs=1)
    found: F64 = reducer.fit_transform(vectors).astype(np.float64)
    return found
