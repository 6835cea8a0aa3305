"""Looks at the teacher on the way: ODCorr, RankMe and, with labels, k-NN and a linear probe.

Paper, figures 1, 2 and 4: such curves over training. A look changes nothing of what is trained: it
runs the teacher in inference mode and draws no random number. Rank 0 looks, the others wait.

The only module of `pretrain` that imports `tasks`, see docs/adr/0005-watching.md.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pathfm_cli import errors
from pathfm_cli.model import device as devices
from pathfm_cli.model import transform, weights
from pathfm_cli.pretrain import augment, board, book, dino, folder, metrics, place, recipe, sheets
from pathfm_cli.tasks import embed, odcorr, quick, source

log = logging.getLogger("pathfm.pretrain")

BATCH = 64
"""Images in one forward pass: a look must find room beside a training that fills the device."""
KEPT_BYTES = 1 << 30
"""Pixels that stay in memory from one look to the next; what is more is read again."""


def check(settings: recipe.Recipe) -> None:
    """See, before any slide is read, that the run can be watched as the recipe says.

    Raises:
        errors.UsageError, errors.InputError: as `quick.open_labelled`.
        errors.MissingExtra: TensorBoard is asked for and absent.
    """
    if settings.train.watch_data:
        quick.open_labelled(settings.train.watch_data, settings.train.watch_images)
    board.check(settings)


class Watch:
    """Looks when one is due and keeps what it saw in `watch.jsonl`; only rank 0 looks."""

    def __init__(self, job: book.Job, here: place.Place, first: int, shown: board.Board) -> None:
        self._job = job
        self._here = here
        self._log: metrics.Log | None = None
        self._seen = -1
        self._patches: _Set | None = None
        self._labelled: tuple[quick.Labelled, _Set] | None = None
        self._board = shown
        if here.leads and job.settings.train.watch_every:
            path = job.run / folder.WATCH
            self._log = metrics.Log(path, first)
            self._seen = metrics.last_step(path) if path.stat().st_size else -1

    def look(self, step: int, method: dino.Dino) -> float:
        """Look at the teacher after `step` steps, if it is time; return the seconds it took.

        It is time every `train.watch_every` steps, before the first and after the last one. A look
        that fails is told on the log; it never ends the run.
        """
        settings = self._job.settings.train
        every = settings.watch_every
        if not every or (step % every and step != settings.steps):
            return 0.0
        start = time.perf_counter()
        if self._log is not None and step > self._seen:
            self._seen = step
            try:
                values = self._measure(step, method)
                self._log.write({**values, "seconds": time.perf_counter() - start})
                self._board.write("watch", values)
            except (errors.PathfmError, OSError) as error:
                log.warning("the teacher could not be looked at after step %d: %s", step, error)
        self._here.wait()
        return time.perf_counter() - start

    def show(self, step: int, pixels_BSSC: torch.Tensor, indices_B: npt.NDArray[np.int64]) -> None:
        """Keep a picture of views of the run's first patches, as `augment.crops` makes them."""
        target = self._job.run / folder.CROPS
        if self._log is not None and step == 0 and not target.exists():
            few = slice(sheets.PATCHES)
            views = augment.crops(self._job.settings, pixels_BSSC[few], indices_B[few])
            sheets.crops(views, target)

    def close(self) -> None:
        """Write the table of all looks."""
        if self._log is not None:
            self._log.close()
            metrics.table(self._job.run / folder.WATCH, self._job.run / folder.WATCH_TABLE)

    def _measure(self, step: int, method: dino.Dino) -> dict[str, Any]:
        encoder = self._encoder(method)
        values: dict[str, Any] = {"step": step}
        if self._job.settings.train.probe_patches:
            self._patches = self._patches or _Set(source.patches(self._job.run / folder.PATCHES))
            vectors, usable = self._patches.vectors(encoder)
            rows = vectors[usable]
            found = odcorr.measure([rows], len(rows), rows.shape[1])
            sheets.neighbours(
                rows, np.flatnonzero(usable), self._patches.read, self._job.run / folder.NEIGHBOURS
            )
            values |= {
                "odcorr": found.odcorr,
                "rankme": found.rankme,
                "floor": found.floor,
                "patches": found.n,
                "failed_patches": int((~usable).sum()),
            }
        if name := self._job.settings.train.watch_data:
            if self._labelled is None:
                labelled = quick.open_labelled(name, self._job.settings.train.watch_images)
                self._labelled = labelled, _Set(labelled.data)
            labelled, images = self._labelled
            vectors, usable = images.vectors(encoder)
            values |= quick.scores(vectors, labelled, usable)
            values |= {"chance": labelled.chance, "failed_images": int((~usable).sum())}
        return values

    def _encoder(self, method: dino.Dino) -> weights.Encoder:
        """The teacher as it is now, fed as `embed` would feed its export."""
        settings = self._job.settings
        backbone = method.teacher.backbone
        info = book.export_info(settings, backbone, 0)
        return weights.Encoder(
            module=weights.on_input(backbone, info).train(backbone.training),
            name=settings.name,
            id="",
            dim=int(backbone.num_features),  # type: ignore[arg-type]
            image_size_px=info.image_size_px,
            mean=info.mean,
            std=info.std,
            embedding=info.embedding,
            prefix_tokens=info.prefix_tokens,
            device=self._here.device,
            precision=devices.resolve(self._here.device, settings.train.precision),
            input=info.input,
        )


class _Set:
    """Images that are looked at again and again: kept at the encoder's size, up to `KEPT_BYTES`."""

    def __init__(self, data: source.Source) -> None:
        self._data = data
        self._kept: dict[int, source.Image] = {}
        self._bytes = 0

    def vectors(self, encoder: weights.Encoder) -> tuple[quick.Features, npt.NDArray[np.bool_]]:
        """(N, K) vectors, and (N,) whether a row has one."""
        self._size_px = encoder.image_size_px
        module = encoder.module
        training = module.training
        module.eval()
        try:
            data = dataclasses.replace(self._data, read=self.read)
            vectors, reasons = embed.vectors(data, encoder, embed.Reading(batch_size=BATCH))
        finally:
            module.train(training)
        usable = np.array([reason is None for reason in reasons])
        if not usable.any():
            raise errors.InputError(f"none of {len(reasons)} images has a vector: {reasons[0]}")
        return vectors, usable

    def read(self, row: int) -> source.Image:
        """Pixels of a row, (S, S, 3) uint8; called from several threads."""
        kept = self._kept.get(row)
        if kept is None:
            pixels = torch.from_numpy(self._data.read(row))[None]
            kept = transform.shrink(pixels, self._size_px)[0].numpy()
            if self._bytes + kept.nbytes <= KEPT_BYTES:
                self._bytes += kept.nbytes
                self._kept[row] = kept
        return kept
