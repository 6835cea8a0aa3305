"""TP53 labels by the paper's rule, their folds, and the ready tables."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks.datasets import request, tp53

TABLES = Path(__file__).parents[2].parent / "shared" / "data" / "labels" / "tp53"
MAF = """#version 2.4
Hugo_Symbol\tTumor_Sample_Barcode\tIMPACT
TP53\tTCGA-AA-0001-01A\tMODERATE
TP53\tTCGA-AA-0002-01A\tLOW
KRAS\tTCGA-AA-0003-01A\tHIGH
TP53\tTCGA-AA-0004-01A\tHIGH
KRAS\tTCGA-AA-0005-01A\tHIGH
KRAS\tTCGA-AA-0006-01A\tHIGH
"""
CALLS = """Gene Symbol\tLocus ID\t{}
KRAS\t1\t-2\t-2\t-2\t-2\t-2
TP53\t2\t0\t-1\t-2\t0\t1
""".format("\t".join(f"TCGA-AA-000{number}-01A" for number in (1, 2, 3, 5, 7)))


@pytest.fixture
def assays(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "t.maf.gz").write_bytes(gzip.compress(MAF.encode()))
    (tmp_path / "calls.txt").write_text(CALLS)
    return tmp_path / "t.maf.gz", tmp_path / "calls.txt"


def test_the_papers_rule(assays: tuple[Path, Path]) -> None:
    cases, notes = tp53.from_assays(*assays)
    assert cases.select("case_id", "label", "mutated", "deleted").rows() == [
        ("TCGA-AA-0001", "aberrated", True, False),
        ("TCGA-AA-0002", "functional", False, False),  # low impact, one copy left
        ("TCGA-AA-0003", "aberrated", False, True),
        ("TCGA-AA-0004", "aberrated", True, False),  # damaged, whatever the copies
        ("TCGA-AA-0005", "functional", False, False),
    ]
    # 0006 has no copy number and 0007 no sequencing, so neither can be called functional.
    assert notes == ["2 patients lack one of the two assays and are left out"]


def test_copy_number_as_a_row_a_sample(assays: tuple[Path, Path], tmp_path: Path) -> None:
    long = tmp_path / "long.csv"
    long.write_text(
        "case_id,gene_name,copy_number\nTCGA-AA-0005-01A,TP53,0\nTCGA-AA-0002-01A,TP53,1\n"
        "TCGA-AA-0002-01A,KRAS,0\n"
    )
    cases, _ = tp53.from_assays(assays[0], long)
    labels = dict(cases.select("case_id", "label").rows())
    assert labels["TCGA-AA-0005"] == "aberrated" and labels["TCGA-AA-0002"] == "functional"


def test_folds_keep_patients_whole_and_classes_even() -> None:
    names = [f"TCGA-AA-{number:04}" for number in range(50)]
    cases = pl.DataFrame({"case_id": names, "label": ["aberrated"] * 20 + ["functional"] * 30})
    folded = tp53.folds(cases)
    table = folded.group_by("fold", "label").len().sort("fold", "label").rows()
    assert table == [
        row for fold in range(5) for row in ((fold, "aberrated", 4), (fold, "functional", 6))
    ]
    assert tp53.folds(cases.sample(fraction=1, shuffle=True, seed=1)).sort("case_id").equals(folded)


@pytest.mark.skipif(not TABLES.is_dir(), reason="the label tables of ../shared/data are not there")
def test_the_ready_tables(tmp_path: Path) -> None:
    paths = tuple(sorted(TABLES.glob("*.csv")))
    made = request.Labels(None, None, paths, None, tmp_path / "labels.csv").make()
    rows = pl.read_csv(tmp_path / "labels.csv")
    assert rows.columns == ["slide", "label", "group", "fold"]
    given = pl.concat([pl.read_csv(path, columns=[0, 1, 2]) for path in paths])
    assert rows.height == given.n_unique() == made.record["rows"]
    assert made.record["patients"] == given["case_id"].n_unique()
    mutated = given.filter(pl.col("TP53_mut") == 1)["slide_id"].to_list()
    assert sorted(rows.filter(label="aberrated")["slide"]) == sorted(set(mutated))
    assert rows.group_by("group").agg(pl.col("fold").n_unique())["fold"].max() == 1


def test_wrong_tables(assays: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("case_id,slide_id,label\nA,s1,0\nA,s2,1\n")
    with pytest.raises(errors.InputError, match="A has two labels"):
        tp53.from_ready([tmp_path / "two.csv"])
    (tmp_path / "odd.csv").write_text("case_id,slide_id,label\nA,s1,2\n")
    with pytest.raises(errors.InputError, match="a label other than"):
        tp53.from_ready([tmp_path / "odd.csv"])
    (tmp_path / "cut.txt").write_text(CALLS[: CALLS.index("TP53")])
    with pytest.raises(errors.InputError, match="no row TP53"):
        tp53.from_assays(assays[0], tmp_path / "cut.txt")
    with pytest.raises(errors.InputError, match="no column IMPACT"):
        (tmp_path / "m.maf").write_text("Hugo_Symbol\tTumor_Sample_Barcode\n")
        tp53.from_assays(tmp_path / "m.maf", assays[1])
    with pytest.raises(errors.UsageError, match="--mutations with --copy-number"):
        request.Labels(assays[0], None, (), None, tmp_path / "x.csv")
