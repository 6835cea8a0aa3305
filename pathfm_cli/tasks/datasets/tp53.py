"""TP53 status of TCGA patients, as labels of their slides (paper IV-A).

Aberrated: a mutation of moderate or high impact, whatever its allele frequency, or both copies
deleted. Functional: mutations and copy number are known, and neither is the case.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import metadata
from pathfm_cli.tasks.datasets import base

GENE = "TP53"
FUNCTIONAL, ABERRATED = "functional", "aberrated"
IMPACTS = ("MODERATE", "HIGH")
"""What Ensembl's VEP calls missense, and nonsense, frameshift or splice site."""
FOLDS = 5
PATIENT = 12
"""Characters of a TCGA barcode that name the patient: TCGA-05-4249."""
DEEP_DELETION = -2
"""GISTIC's call for the loss of both copies."""
MAX_LINE = 1 << 24
"""Characters of the longest line: a sample a column, for all of TCGA."""
_GENE_COLUMNS = ("Gene Symbol", "Hugo_Symbol")
_CASE_COLUMNS = ("case_id", "sample", "Sample", "patient")
_LABEL_COLUMNS = ("label", "TP53_mut")
_NAMED = {"0": FUNCTIONAL, "1": ABERRATED, FUNCTIONAL: FUNCTIONAL, ABERRATED: ABERRATED}


class Tp53(base.Dataset):
    """Patches of slides; the labels are made here, the patches by `sample`."""

    facts = base.Facts(
        name="tp53",
        title="TP53 status of TCGA patients, patches of 224 px",
        classes=(FUNCTIONAL, ABERRATED),
        counts={"five folds": 102_400},
        mpp=0.5,
        licence="TCGA open access",
        licence_url="https://gdc.cancer.gov/access-data/data-access-policies",
        origin="portal.gdc.cancer.gov: diagnostic slides, MAF, gene-level copy number",
        layout=("labels.csv of `pathfm tasks tp53`, and your index of the slides",),
        instructions=(
            "pathfm tasks tp53 --mutations MAF --copy-number TABLE --slides s.parquet -o labels.csv"
        ),
        notes="every slide with equal probability, folds by patient",
    )

    def scan(self, root: Path) -> base.Scan:
        """There is no folder to scan.

        Raises:
            errors.UsageError: always; it says which verbs make the patches.
        """
        raise errors.UsageError(
            "tp53 is made of patches of your slides, not of a folder of images.",
            "pathfm index slides/ --metadata labels.csv -o s.parquet | pathfm mask -o t.parquet | "
            "pathfm sample --n 102400 --mpp 0.5 --size 224 -o p.parquet | pathfm embed --split fold"
            " --model run/ -o e.parquet",
        )


def from_assays(mutations: Path, copy_number: Path) -> tuple[pl.DataFrame, list[str]]:
    """Label patients by the paper's rule.

    Args:
        mutations: a MAF (also .gz) with Hugo_Symbol, Tumor_Sample_Barcode and IMPACT, all genes.
        copy_number: genes by samples with GISTIC's calls (-2 is a deep deletion), or a row a
            sample with `copy_number` (0 is none left), and `gene_name` where there are more genes.

    Returns:
        `case_id, label, mutated, deleted`, sorted, and sentences about patients left out.

    Raises:
        errors.InputError: a file is missing or lacks a column, or no patient is in both.
    """
    sequenced, mutated = _mutated(mutations)
    measured, deleted = _deleted(copy_number)
    known = (sequenced & measured) | mutated | deleted
    if not sequenced & measured:
        raise errors.InputError(
            f"{mutations} and {copy_number} have no patient in common.",
            "both name samples by TCGA barcodes",
        )
    cases = pl.DataFrame({"case_id": sorted(known)}, schema={"case_id": pl.String}).with_columns(
        mutated=pl.col("case_id").is_in(list(mutated)),
        deleted=pl.col("case_id").is_in(list(deleted)),
    )
    label = pl.when(pl.col("mutated") | pl.col("deleted")).then(pl.lit(ABERRATED))
    cases = cases.select(
        "case_id", label.otherwise(pl.lit(FUNCTIONAL)).alias("label"), "mutated", "deleted"
    )
    lost = len((sequenced | measured) - known)
    notes = [f"{lost} patients lack one of the two assays and are left out"] if lost else []
    return cases, notes


def from_ready(paths: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read tables of `case_id, slide_id` and `label` or `TP53_mut` (0, 1 or the class names).

    Returns:
        `case_id, label` of the patients, sorted, and `slide, case_id` of their slides, sorted.

    Raises:
        errors.InputError: a file is missing, lacks a column, holds another value, or a patient or
            slide has two labels.
    """
    frames = [_ready(path) for path in paths]
    rows = pl.concat(frames).unique().sort("case_id", "slide")
    cases = rows.select("case_id", "label").unique().sort("case_id")
    for column, frame in (("case_id", cases), ("slide", rows)):
        if twice := frame.filter(pl.col(column).is_duplicated())[column].to_list():
            raise errors.InputError(f"{twice[0]} has two labels.", "one label a patient is needed")
    return cases, rows.select("slide", "case_id").sort("slide")


def slides_of(path: Path) -> pl.DataFrame:
    """`slide, case_id` of a `slides` artifact whose ids are TCGA barcodes.

    Raises:
        errors.InputError: it cannot be read.
    """
    names = artifacts.read_table(path, "slides", "tissue").frame["slide"]
    case = pl.col("slide").str.slice(0, PATIENT)
    return pl.DataFrame({"slide": names}).with_columns(case.alias("case_id")).sort("slide")


def folds(cases: pl.DataFrame) -> pl.DataFrame:
    """Add `fold`, 0 to 4: the patients of a class, by sha256 of their name, are dealt in turn."""
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in cases["case_id"]]
    turn = pl.col("digest").rank("ordinal").over("label") - 1
    return cases.with_columns(digest=pl.Series(digests, dtype=pl.String)).select(
        pl.exclude("digest"), (turn % FOLDS).cast(pl.Int64).alias("fold")
    )


def labels(cases: pl.DataFrame, slides: pl.DataFrame | None) -> tuple[pl.DataFrame, list[str]]:
    """The table to write: a row a slide (for `index --metadata`), or, without slides, a patient.

    Raises:
        errors.InputError: no slide belongs to a patient with a label.
    """
    folded = folds(cases)
    if slides is None:
        return folded, []
    joined = slides.join(folded, on="case_id", how="inner", maintain_order="left")
    if joined.is_empty():
        raise errors.InputError(
            "No slide belongs to a patient with a label.",
            "slide ids must begin with the patient's barcode, as TCGA-05-4249",
        )
    rows = joined.select("slide", "label", pl.col("case_id").alias("group"), "fold")
    without = slides.height - rows.height
    return rows, [f"{without} slides have no label and are left out"] if without else []


def _mutated(path: Path) -> tuple[set[str], set[str]]:
    """Patients with any row in a MAF, and those with a damaging TP53 mutation."""
    table = _read(path, ("Hugo_Symbol", "Tumor_Sample_Barcode", "IMPACT"))
    case = pl.col("Tumor_Sample_Barcode").str.slice(0, PATIENT)
    hit = (pl.col("Hugo_Symbol") == GENE) & pl.col("IMPACT").str.to_uppercase().is_in(IMPACTS)
    return _names(table.select(case)), _names(table.filter(hit).select(case))


def _deleted(path: Path) -> tuple[set[str], set[str]]:
    """Patients with a copy number of TP53, and those who lost both copies."""
    columns = _columns(path)
    if any(name in columns for name in _GENE_COLUMNS):
        return _calls(path, _matrix_row(path), DEEP_DELETION)
    case = next((name for name in _CASE_COLUMNS if name in columns), None)
    if case is None or "copy_number" not in columns:
        raise errors.InputError(
            f"{path} is neither genes by samples nor a row a sample.",
            "columns Gene Symbol, TCGA-...; or case_id, copy_number",
        )
    several = "gene_name" in columns
    table = _read(path, (case, "copy_number", *(["gene_name"] if several else [])))
    if several:
        table = table.filter(pl.col("gene_name") == GENE)
    return _calls(path, table.select(case=case, call="copy_number"), 0)


def _matrix_row(path: Path) -> pl.DataFrame:
    """`case, call` of the gene's row; the other rows, wide as they are, are only passed over."""
    header: list[str] = []
    with _text(path) as lines:
        for line in lines:
            cells = line.rstrip("\r\n").split("\t")
            if not header and not line.startswith("#"):
                header = cells
            elif cells[0] == GENE and len(cells) == len(header):
                pairs = list(zip(header, cells, strict=True))
                cases = [pair for pair in pairs if pair[0].startswith("TCGA-")]
                return pl.DataFrame(cases, schema=["case", "call"], orient="row")
    raise errors.InputError(f"{path} has no row {GENE} as long as its header.", "is it cut short?")


def _calls(path: Path, calls: pl.DataFrame, lost: int) -> tuple[set[str], set[str]]:
    numbers = calls.with_columns(pl.col("call").cast(pl.Float64, strict=False)).drop_nulls()
    if numbers.is_empty():
        raise errors.InputError(f"{path} holds no copy number of {GENE}.")
    case = pl.col("case").str.slice(0, PATIENT)
    deep = numbers.filter(pl.col("call") <= lost)
    return _names(numbers.select(case)), _names(deep.select(case))


def _ready(path: Path) -> pl.DataFrame:
    table = metadata.read(path)
    label = next((name for name in _LABEL_COLUMNS if name in table.columns), None)
    for name in ("case_id", "slide_id", label):
        if name is None or name not in table.columns:
            raise errors.InputError(
                f"{path} needs the columns case_id, slide_id and label or TP53_mut.",
                f"it has: {', '.join(table.columns)}",
            )
    rows = table.select(
        pl.col("case_id").cast(pl.String),
        pl.col("slide_id").cast(pl.String).alias("slide"),
        pl.col(str(label)).cast(pl.String).replace_strict(_NAMED, default=None).alias("label"),
    )
    if rows.null_count().sum_horizontal()[0]:
        raise errors.InputError(
            f"{path} has an empty cell or a label other than 0, 1, {FUNCTIONAL}, {ABERRATED}."
        )
    return rows


def _columns(path: Path) -> list[str]:
    """Names in the first line that is no comment."""
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist.", "get it from portal.gdc.cancer.gov")
    with _text(path) as lines:
        first = next((line for line in lines if not line.startswith("#")), "")
    return first.rstrip("\r\n").split(_separator(path))


def _read(path: Path, needed: Sequence[str]) -> pl.DataFrame:
    """Columns of a table of text; `#` begins a comment."""
    known = _columns(path)
    if lost := [name for name in needed if name not in known]:
        raise errors.InputError(
            f"{path} has no column {lost[0]}.", f"it has: {', '.join(known[:8])}, ..."
        )
    separator = _separator(path)
    try:
        return pl.read_csv(
            path,
            columns=list(needed),
            separator=separator,
            comment_prefix="#",
            infer_schema=False,
            quote_char=None if separator == "\t" else '"',
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise errors.InputError(f"{path} cannot be read as a table: {reason}.") from error


def _separator(path: Path) -> str:
    return "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"


@contextlib.contextmanager
def _text(path: Path) -> Iterator[Iterator[str]]:
    """Lines of a file, plain or .gz, each bounded."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    try:
        with opened as file:
            yield iter(lambda: file.readline(MAX_LINE), "")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise errors.InputError(f"{path} cannot be read as text.", "is it cut short?") from error


def _names(frame: pl.DataFrame) -> set[str]:
    return set(frame.to_series().drop_nulls().to_list())
