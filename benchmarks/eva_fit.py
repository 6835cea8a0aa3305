"""kaiko-eva's own offline fit, for `eva_compare.py`; needs an environment with kaiko-eva 0.4.

python benchmarks/eva_fit.py FOLDER CLASSES STEPS PATIENCE RUNS

FOLDER holds `manifest.csv` (embeddings, target, split), one .pt file an image, and `head.pt`, the
first weights. Prints one JSON
line: balanced accuracy of `test` by run, seconds of wall and processor, and steps taken.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
import warnings

import lightning.pytorch as pl
import torch
from eva.core import metrics as eva_metrics
from eva.core.data import dataloaders, datamodules
from eva.core.data import datasets as eva_datasets
from eva.core.data.datamodules import schemas
from eva.core.metrics import structs
from eva.core.models import modules
from eva.core.trainers import functional
from eva.core.trainers import trainer as eva_trainer
from lightning.pytorch import callbacks


class Steps(callbacks.Callback):
    """Count the optimiser's steps."""

    taken = 0

    def on_train_batch_end(self, *_: object) -> None:
        """One more."""
        Steps.taken += 1


def main() -> None:
    """Fit and print."""
    folder, classes, steps, patience, runs = sys.argv[1], *map(int, sys.argv[2:6])
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    binary = classes == 2
    parts = {
        split: eva_datasets.EmbeddingsClassificationDataset(
            folder,
            "manifest.csv",
            split=split,
            target_transforms=(lambda target: target.float()) if binary else None,
        )
        for split in ("train", "val", "test")
    }
    loader = functools.partial(
        dataloaders.DataLoader,
        batch_size=256,
        num_workers=0,
        persistent_workers=False,
        prefetch_factor=None,
        pin_memory=False,
    )
    data = datamodules.DataModule(
        schemas.DatasetsSchema(**parts),
        schemas.DataloadersSchema(loader(shuffle=True), loader(), loader()),
    )
    if binary:
        measure = eva_metrics.BinaryClassificationMetrics()
        name = "BinaryBalancedAccuracy"
    else:
        measure = eva_metrics.MulticlassClassificationMetrics(num_classes=classes)
        name = "MulticlassAccuracy"
    width = torch.load(f"{folder}/0.pt", weights_only=True).shape[-1]
    scores, start = [], (time.perf_counter(), time.process_time())
    for run in range(runs):
        pl.seed_everything(run, verbose=False)
        head = torch.nn.Linear(width, 1 if binary else classes)
        head.load_state_dict(torch.load(f"{folder}/head.pt", weights_only=True))
        model = modules.HeadModule(
            head=head,
            criterion=torch.nn.BCEWithLogitsLoss() if binary else torch.nn.CrossEntropyLoss(),
            optimizer=functools.partial(torch.optim.AdamW, lr=3e-4),
            metrics=structs.MetricsSchema(evaluation=measure),
        )
        trainer = eva_trainer.Trainer(
            max_steps=steps,
            accelerator="cpu",
            default_root_dir=f"{folder}/logs",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                callbacks.EarlyStopping(f"val/{name}", patience=patience, mode="max"),
                callbacks.ModelCheckpoint(monitor=f"val/{name}", mode="max", save_top_k=1),
                Steps(),
            ],
        )
        _, found = functional.run_evaluation(trainer, model, data, run_id=run, verbose=False)
        scores.append(next(v for k, v in found[0].items() if k.startswith(f"test/{name}")))
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    print(json.dumps({"scores": scores, "wall": spent[0], "cpu": spent[1], "steps": Steps.taken}))


if __name__ == "__main__":
    main()
