"""Whole runs in this process: resume, metrics, files. What is compared is bytes, not closeness."""

import dataclasses
import json
import math
import shutil

import polars as pl
import pytest
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors
from pathfm_cli.data import stream
from pathfm_cli.pretrain import (
    augment,
    book,
    checkpoint,
    collapse,
    folder,
    networks,
    place,
    probe,
    run,
    train,
)

HERE = place.Place(0, 1, torch.device("cpu"))
TIMINGS = ("images_per_s", "stall")


def begin(tissue, path, settings):
    header = run.identity(tissue, settings)
    folder.prepare(path, header, settings, overwrite=False)
    return book.Job(tissue, path, header, settings)


def stop_after(calls):
    """A wish to stop that is there at the given call and not before."""
    count = iter(range(1, 10_000))
    return lambda: next(count) >= calls


def whole(tissue, path, settings):
    train.train(begin(tissue, path, settings), HERE, lambda: False)
    return path


def lines(path):
    rows = [json.loads(line) for line in (path / folder.METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@pytest.fixture(scope="module")
def settings(micro):
    return micro()


@pytest.fixture(scope="module")
def reference(tissue, settings, tmp_path_factory):
    return whole(tissue, tmp_path_factory.mktemp("runs") / "whole", settings)


def same_run(one, other):
    for name in ("student", "teacher", "optimiser", "centre"):
        file = f"{folder.CHECKPOINTS}/step-000012/{name}.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes(), name
    assert (one / folder.RESULT).read_bytes() == (other / folder.RESULT).read_bytes()
    assert lines(one) == lines(other)


def test_a_run_is_repeatable(tissue, settings, reference, tmp_path):
    same_run(reference, whole(tissue, tmp_path / "again", settings))


@pytest.mark.parametrize("stop", [1, 6, 7])
def test_stopped_and_resumed_equals_uninterrupted(tissue, settings, reference, tmp_path, stop):
    job = begin(tissue, tmp_path / "run", settings)
    with pytest.raises(errors.Interrupted, match=f"after step {stop} of 12"):
        train.train(job, HERE, stop_after(stop))
    assert not (job.run / folder.RESULT).exists()
    torch.manual_seed(12345)
    train.train(job, HERE, lambda: False)
    same_run(reference, job.run)


def test_no_rank_leaves_before_the_checkpoint_is_written(tissue, settings, tmp_path, monkeypatch):
    job, calls, save = begin(tissue, tmp_path / "run", settings), [], checkpoint.save

    def note(*arguments):
        save(*arguments)
        calls.append("saved")

    monkeypatch.setattr(checkpoint, "save", note)
    monkeypatch.setattr(place.Place, "wait", lambda here: calls.append("all are here"))
    with pytest.raises(errors.Interrupted):
        train.train(job, HERE, stop_after(2))
    assert calls[-2:] == ["saved", "all are here"]


def test_what_is_off_in_the_presets_resumes_as_exactly(tissue, micro, tmp_path):
    more = (
        "head.batch_norm=true",
        "loss.koleo=0.1",
        "model.input=density",
        "model.global_pool=avg",
    )
    settings = micro(*more)
    reference = whole(tissue, tmp_path / "whole", settings)
    job = begin(tissue, tmp_path / "run", settings)
    with pytest.raises(errors.Interrupted):
        train.train(job, HERE, stop_after(5))
    train.train(job, HERE, lambda: False)
    same_run(reference, job.run)
    written = json.loads((job.run / folder.MODEL).read_text())
    assert (written["input"], written["embedding"]) == ("density", "avg")
    assert written["kwargs"]["global_pool"] == "avg"


def test_killed_and_resumed_equals_uninterrupted(tissue, settings, reference, tmp_path):
    """As after SIGKILL: lines beyond the last checkpoint, a half line, half a checkpoint."""
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    for name in (folder.RESULT, folder.MODEL, folder.METRICS_TABLE):
        (path / name).unlink()
    shutil.rmtree(path / folder.CHECKPOINTS / "step-000012")
    half = path / folder.CHECKPOINTS / ".step-000012.tmp-1"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"half")
    with (path / folder.METRICS).open("a") as file:
        file.write('{"step": 13, "lo')
    train.train(begin(tissue, path, settings), HERE, lambda: False)
    same_run(reference, path)
    assert not half.exists()


def poisoned(monkeypatch, steps):
    """Make the first view of the given steps, from 0, not a number."""
    plain = augment.crops

    def crops(settings, pixels, indices):
        views = plain(settings, pixels, indices)
        if int(indices[0]) // 4 in steps:
            views[0][0, 0, 0, 0] = math.nan
        return views

    monkeypatch.setattr(augment, "crops", crops)


def test_a_step_that_is_not_finite_is_skipped_listed_and_survived(
    tissue, settings, tmp_path, monkeypatch, caplog
):
    poisoned(monkeypatch, {1, 6})
    path = whole(tissue, tmp_path / "run", settings)
    rows = lines(path)
    assert [row["step"] for row in rows if row["loss"] is None] == [2, 7]
    assert [row["skipped_steps"] for row in rows] == [0] + [1] * 5 + [2] * 6
    assert artifacts.read_header(path).metrics["skipped_steps"] == 2
    listed = (path / folder.SKIPPED / "steps-rank-0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [
        {"step": 2, "loss": "nan", "indices": [4, 5, 6, 7]},
        {"step": 7, "loss": "nan", "indices": [24, 25, 26, 27]},
    ]
    for tensor in safetensors_torch.load_file(path / folder.RESULT).values():
        assert torch.isfinite(tensor).all()
    assert sum("was skipped" in record.message for record in caplog.records) == 2


def test_skipped_steps_survive_a_stop_between_log_lines(tissue, micro, tmp_path, monkeypatch):
    settings = micro("train.log_every=5")
    poisoned(monkeypatch, {1, 2, 8})
    once = whole(tissue, tmp_path / "once", settings)
    job = begin(tissue, tmp_path / "run", settings)
    with pytest.raises(errors.Interrupted):
        train.train(job, HERE, stop_after(3))
    train.train(job, HERE, lambda: False)
    same_run(once, job.run)
    name = f"{folder.SKIPPED}/steps-rank-0.jsonl"
    assert (once / name).read_text() == (job.run / name).read_text()
    assert [json.loads(line)["step"] for line in (once / name).read_text().splitlines()] == [
        *(2, 3, 9)
    ]


def test_too_many_skipped_steps_in_a_row_end_the_run(tissue, micro, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 3, 5, 6, 7})
    match = r"By step 8, 3 steps in a row .* more than 2 \(train.max_nonfinite\)"
    with pytest.raises(errors.PathfmError, match=match) as caught:
        whole(tissue, tmp_path / "run", micro("train.max_nonfinite=2"))
    assert "optim.base_lr" in caught.value.hint
    whole(tissue, tmp_path / "patient", micro("train.max_nonfinite=3"))


def test_a_collapse_is_told_once_and_ends_the_run_if_that_is_wanted(
    tissue, micro, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(collapse, "PATIENCE_STEPS", 4)
    # Targets at this temperature are uniform: the run does not tell images apart from the start.
    flat = ("loss.teacher_temperature=1e4", "loss.teacher_temperature_start=1e4")
    path = whole(tissue, tmp_path / "run", micro(*flat))
    assert [row["collapse"] for row in lines(path)] == [0] * 6 + [1] * 6
    for row in lines(path):
        assert row["loss_to_uniform"] == pytest.approx(abs(row["loss"] - math.log(64)))
    told = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(told) == 1 and told[0].startswith("The run has collapsed by step 7")
    stop = micro(*flat, "train.on_collapse=stop")
    with pytest.raises(errors.PathfmError, match="collapsed by step 7"):
        whole(tissue, tmp_path / "stop", stop)


def test_metrics_are_numbers_and_the_table_repeats_them(reference):
    rows = lines(reference)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["lr"] == 0 and rows[2]["lr"] == pytest.approx(4e-3 * 4 / 256)
    assert rows[0]["momentum"] == pytest.approx(0.996)
    assert all(0 < row["teacher_entropy"] < math.log(64) for row in rows)
    table = pl.read_parquet(reference / folder.METRICS_TABLE)
    assert table["loss"].to_list() == [row["loss"] for row in rows]
    assert {"images_per_s", "stall", "grad_norm", "weight_decay"} < set(table.columns)
    assert table["stall"].is_between(0, 1).all()


def test_the_first_loss_by_hand(tissue, micro, tmp_path):
    """Patches, views and networks as they are first; teacher temperature 0.03, no centre yet."""
    settings = micro("model.drop_path_rate=0.0")
    path = whole(tissue, tmp_path / "run", settings)
    batch = next(train.batches(book.Job(tissue, path, None, settings), HERE, 0))
    views = augment.crops(settings, batch.pixels, batch.indices.numpy())
    student, teacher = networks.pair(settings)
    q = torch.softmax(teacher(views[:1]) / 0.03, dim=-1).view(2, 4, 64)
    log_p = torch.log_softmax(student(views) / 0.1, dim=-1).view(4, 4, 64)
    terms = [-(q[g] * log_p[v]).sum(-1).mean() for g in range(2) for v in range(4) if v != g]
    assert lines(path)[0]["loss"] == pytest.approx((sum(terms) / 6).item(), rel=1e-5)


def test_the_last_two_checkpoints_are_kept_and_hold_no_pickle(reference):
    kept = sorted(path.name for path in (reference / folder.CHECKPOINTS).iterdir())
    assert kept == ["step-000008", "step-000012"]
    files = {path.name for path in (reference / folder.CHECKPOINTS / kept[-1]).iterdir()}
    names = ("student", "teacher", "centre", "guard", "optimiser")
    assert files == {"state.json", *(f"{name}.safetensors" for name in names)}


def test_prototypes_have_moments_only_once_they_move(tissue, settings, reference, tmp_path):
    job = begin(tissue, tmp_path / "run", settings)
    with pytest.raises(errors.Interrupted):
        train.train(job, HERE, stop_after(5))

    def moments(path):
        return set(safetensors_torch.load_file(path / "optimiser.safetensors"))

    early = moments(folder.checkpoints(job.run / folder.CHECKPOINTS)[-1])
    late = moments(folder.checkpoints(reference / folder.CHECKPOINTS)[-1])
    assert "exp_avg.head.last_layer.weight_v" in late - early
    assert "exp_avg.backbone.cls_token" in early


def with_checkpoints_of(reference, job):
    shutil.copytree(reference / folder.CHECKPOINTS, job.run / folder.CHECKPOINTS)
    return job


def test_a_checkpoint_of_another_run_is_refused(tissue, micro, reference, tmp_path):
    job = begin(tissue, tmp_path / "run", micro("train.seed=1"))
    with pytest.raises(errors.InputError, match="belongs to run"):
        train.train(with_checkpoints_of(reference, job), HERE, lambda: False)


def test_a_damaged_checkpoint_says_so(tissue, settings, reference, tmp_path):
    job = with_checkpoints_of(reference, begin(tissue, tmp_path / "run", settings))
    damaged = job.run / folder.CHECKPOINTS / "step-000012" / "teacher.safetensors"
    damaged.write_bytes(b"\0" * 40)
    with pytest.raises(errors.InputError, match="is damaged") as caught:
        train.train(job, HERE, lambda: False)
    assert caught.value.hint.startswith("rm -r ")


def test_a_student_that_is_lost_ends_the_run(tissue, micro, tmp_path):
    wild = micro("optim.base_lr=1e30", "optim.clip_norm=0.0")
    with pytest.raises(errors.PathfmError, match="4 steps in a row had a loss or gradient"):
        train.train(begin(tissue, tmp_path / "run", wild), HERE, lambda: False)


def test_a_checkpoint_of_another_version_is_refused(tissue, settings, reference, tmp_path):
    job = with_checkpoints_of(reference, begin(tissue, tmp_path / "run", settings))
    state = job.run / folder.CHECKPOINTS / "step-000012" / "state.json"
    state.write_text(state.read_text().replace("pathfm.resume/2", "pathfm.resume/1"))
    with pytest.raises(errors.InputError, match=r"another version of pathfm \(pathfm.resume/1\)"):
        train.train(job, HERE, lambda: False)


def test_as_many_checkpoints_are_kept_as_wanted(tissue, micro, tmp_path):
    for keep, steps in ((1, [12]), (0, [4, 8, 12])):
        path = whole(tissue, tmp_path / f"{keep}", micro(f"train.keep_checkpoints={keep}"))
        kept = folder.checkpoints(path / folder.CHECKPOINTS)
        assert [folder.steps(one) for one in kept] == steps


def test_the_result_says_what_it_is(tissue, settings, reference):
    header = artifacts.read_header(reference, "checkpoint")
    assert header.parents == (f"tissue:{artifacts.read_header(tissue).id}",)
    assert header.settings["train"]["steps"] == 12
    assert header.metrics["step"] == 12
    info = json.loads((reference / folder.MODEL).read_text())
    assert (info["arch"], info["step"], info["recipe"]) == ("vit_tiny_patch16_224", 12, "tiny")
    assert info["image_size_px"] == 32 and info["mean"] == [0.5, 0.5, 0.5]
    teacher = safetensors_torch.load_file(reference / folder.RESULT)
    saved = safetensors_torch.load_file(
        reference / folder.CHECKPOINTS / "step-000012" / "teacher.safetensors"
    )
    assert teacher and all(t.equal(saved[f"backbone.{name}"]) for name, t in teacher.items())


def test_exports_on_the_way(tissue, micro, tmp_path):
    import timm  # after `pathfm_cli.model.shim`, which the other imports bring

    often = micro("train.export_every=5")
    path = whole(tissue, tmp_path / "run", often)
    found = sorted((path / folder.EXPORTS).iterdir())
    assert [step.name for step in found] == ["step-000005", "step-000010"]
    ids = {artifacts.read_header(step, "checkpoint").id for step in [*found, path]}
    assert len(ids) == 3
    assert json.loads((found[0] / folder.MODEL).read_text())["step"] == 5
    for export in [*found, path]:
        info = json.loads((export / folder.MODEL).read_text())
        module = timm.create_model(info["arch"], num_classes=0, **info["kwargs"])
        module.load_state_dict(safetensors_torch.load_file(export / folder.RESULT), strict=True)


def test_distinct_patches_come_again_with_new_views(tissue, micro):
    few = micro("train.distinct_patches=8")
    got = list(train.batches(book.Job(tissue, tissue, None, few), HERE, 0))
    assert got[0].pixels.equal(got[2].pixels) and not got[0].pixels.equal(got[1].pixels)
    assert got[2].indices.tolist() == [8, 9, 10, 11]


def test_the_probe_set_is_drawn_once(tissue, settings, tmp_path):
    target = tmp_path / folder.PATCHES
    probe.record(tissue, target, settings)
    first = target.read_bytes()
    probe.record(tissue, target, settings)
    assert target.read_bytes() == first
    table = artifacts.read_table(target, "patches")
    assert table.frame.height == 6 and table.frame["size_px"].unique().to_list() == [48]


def test_a_run_on_patches_takes_their_first_rows(tissue, micro, tmp_path):
    patches = tmp_path / "p.parquet"
    probe.record(tissue, patches, micro())
    path = tmp_path / "run"
    probe.record(patches, path / folder.PATCHES, micro("train.probe_patches=2"))
    kept = artifacts.read_table(path / folder.PATCHES, "patches")
    assert kept.frame.equals(artifacts.read_table(patches).frame.head(2))
    whole(patches, path, micro())
    parents = artifacts.read_header(path).parents
    assert parents == (f"patches:{artifacts.read_header(patches).id}",)


def test_replaced_patches_are_counted_and_named_once(
    tissue, settings, tmp_path, monkeypatch, caplog
):
    plain = stream.batches

    def with_failures(*arguments, **options):
        for number, batch in enumerate(plain(*arguments, **options)):
            lost = (stream.Failure(7, "s1", "s1: tile 3 is damaged"),) * (number in (2, 5))
            yield dataclasses.replace(batch, failed=lost)

    monkeypatch.setattr(stream, "batches", with_failures)
    path = whole(tissue, tmp_path / "run", settings)
    assert [row["step"] for row in lines(path) if row["failed_patches"]] == [3, 6]
    assert artifacts.read_header(path).metrics["failed_patches"] == 2
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["patch 7 was replaced by another: s1: tile 3 is damaged"]
    listed = (path / "skipped" / "rank-0.jsonl").read_text().splitlines()
    one = {"index": 7, "slide": "s1", "error": "s1: tile 3 is damaged"}
    assert [json.loads(line) for line in listed] == [one, one]


def test_too_many_replaced_patches_end_the_run(tissue, micro, tmp_path, monkeypatch):
    plain = stream.batches

    def with_failures(*arguments, **options):
        for batch in plain(*arguments, **options):
            yield dataclasses.replace(batch, failed=(stream.Failure(7, "s1", "s1: is gone"),))

    monkeypatch.setattr(stream, "batches", with_failures)
    path = tmp_path / "run"
    with pytest.raises(errors.TooManyFailures, match=r"3 of 12 patches .* 0.2% .*s1: is gone"):
        whole(tissue, path, micro("train.max_failed=0.002"))
    assert not (path / "teacher.safetensors").exists()
