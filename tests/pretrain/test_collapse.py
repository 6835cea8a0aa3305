"""The detector on lines made by hand: N = 8 target views, K = 64, so the limit is 0.01 ln 8."""

from pathfm_cli.pretrain import collapse


def line(step, information, entropy=3.0):
    return {"step": step, "teacher_entropy": entropy, "marginal_entropy": entropy + information}


def told(lines, first_step=0):
    detector = collapse.Detector(64, 8, first_step)
    return [one["step"] for one in lines if detector.see(one)]


def test_no_information_for_fifty_steps_is_a_collapse():
    assert told([line(step, 0.02) for step in range(10, 90, 10)]) == [60, 70, 80]


def test_either_end_counts_uniform_and_one_hot():
    for entropy in (4.158, 0.0):
        assert told([line(step, 0.0, entropy) for step in (0, 30, 60)]) == [60]


def test_a_healthy_run_near_ln_k_is_none():
    assert told([line(step, 0.022, 4.1) for step in range(0, 500, 10)]) == []


def test_one_good_line_starts_the_count_again():
    lines = [line(step, 0.3 if step == 40 else 0.0) for step in range(0, 110, 10)]
    assert told(lines) == [100]


def test_warmup_says_nothing():
    assert told([line(step, 0.0) for step in range(0, 110, 10)], first_step=45) == [100]


def test_rare_lines_must_be_three():
    assert told([line(step, 0.0) for step in (0, 1000, 2000, 3000)]) == [2000, 3000]


def test_a_skipped_step_says_nothing():
    empty = {"step": 10, "teacher_entropy": None, "marginal_entropy": None}
    assert told([line(0, 0.0), empty, line(40, 0.0), line(50, 0.0)]) == [50]
