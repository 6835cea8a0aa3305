"""Options declared once: one spelling for every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write the result.")]
OptionalOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Where to write the result; without it nothing is written."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result made with other inputs or settings.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as one JSON line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the path of the result.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Say what would be done; write nothing.")
]
MEASURE_S = 20.0
"""About as long as a person waits for an answer."""
Measure = Annotated[
    float,
    typer.Option(
        min=0, max=3600, help="With --dry-run: seconds to try the work out for; 0: not at all."
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Parallel readers; 0 means one per core.")
]
MAX_SEED = 2**63 - 1
"""Seeds are written to TOML and parquet as signed numbers of 64 bits."""
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask", metavar="ADDRESS", help="Spread over a Dask cluster: tcp://HOST:8786, local:N."
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of every random choice.")
]
MaxFailed = Annotated[
    int | None,
    typer.Option("--max-failed", min=0, help="Give up (exit 1) when more rows than this fail."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[
    str, typer.Option("--precision", help="auto, fp32 or bf16: arithmetic of the encoder.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Change one setting of the recipe; repeatable."
    ),
]
WHERE = typer.Option(
    "--where",
    metavar="CONDITION",
    help="Only slides that meet it, as in \"stain == 'HE' and preservation == 'FFPE'\".",
)
SUBSET = typer.Option("--subset", help="Only this share of the slides; 0.01 lies in 0.1.")
Where = Annotated[str, WHERE]
Subset = Annotated[float, SUBSET]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Keep tiles of remote slides on this local disk."),
]
CacheSize = Annotated[
    float, typer.Option("--cache-gb", help="Bound of --cache; tiles unused for longest go first.")
]
CACHE_GB = 20.0
"""As `wsi.cache.DEFAULT_GB`; no module of the library is loaded before a verb runs."""
Partial = Annotated[
    bool, typer.Option("--partial", help="Go on where images of a data set are missing.")
]
Task = Annotated[
    str | None, typer.Option("--task", help="A data set by name: pathfm tasks lists them.")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the data set; else $PATHFM_DATA/NAME, or the user's."),
]
