"""Laws of the doctor: every planted fault is found and named, a healthy CPU passes, and what is found decides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers.devices as faulty
from helpers.devices import ATTENTION, FAULTS, GIB, MAC, Spoil, subject
from helpers.runs import positron
from positron_mini import device as devices
from positron_mini.config import preset_shape
from positron_mini.device import Finding, Machine, Verdict
from positron_mini.device.quiet import Usage
from positron_mini.doctor import examine as examining
from positron_mini.doctor import isolate, kernels, report, speed, training
from positron_mini.doctor.examine import Examination, Scope, checks_of, examine
from positron_mini.doctor.speed import Pace, hopeless_bf16, time_small_product
from positron_mini.doctor.subject import Check, Subject
from positron_mini.train.speed import fastest

# memory for two rows of TinyGPT at once, so that the largest product has 16 million results
MACHINE = Machine(("cpu",), (), 4 * GIB, 2, True, "Linux", "A chip", "6.1", "2.13.0", "AVX2")
M3 = replace(MAC, chip="Apple M3", os_version="15.5", torch="2.13.0")
SCOPE = Scope(steps=3, drift_steps=10, speeds=(), large=False)
TODAY = date(2026, 11, 23)


def first_failure(checks: Iterator[Check]) -> Check:
    """The first check that fails. Fails when there is none."""
    return next(check for check in checks if not check.ok)


# --- planted faults ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", FAULTS)
def test_T5_a_planted_fault_is_found_and_named(planted: str) -> None:
    fault = FAULTS[planted]
    spoiled = subject(fault.spoils, fault.precision)
    # where bf16 is emulated, products of full size take minutes
    found = first_failure(checks_of(spoiled, MACHINE, SCOPE) if fault.precision == "fp32" else kernels.check_kernels(spoiled, 64))
    assert (found.name, found.condemns) == (fault.check, fault.is_unfit), found.detail
    assert fault.said in found.detail


def test_T5_a_leak_is_seen_in_the_model_itself() -> None:
    found = first_failure(training.check_causality(subject({ATTENTION: faulty.leak_in_fours})))
    assert found.name == "causality" and found.condemns and "attention sees later tokens" in found.detail


def test_T5_a_leak_into_packed_texts_is_seen_in_the_model_itself() -> None:
    def look_at_all(operation: Any, args: Any, kwargs: Any) -> Any:
        return faulty.ignored_mask(operation, args, kwargs) if kwargs.get("attn_mask") is not None else operation(*args, **kwargs)

    assert "while packed" in first_failure(training.check_causality(subject({ATTENTION: look_at_all}))).detail


@pytest.mark.parametrize(
    ("spoils", "name", "said"),
    [
        ({"embedding_dense_backward": faulty.embedding_once}, "gradients, odd shapes", "embed_tokens.weight"),
        ({"_log_softmax": lambda op, args, kw: op(args[0] * 0.9, *args[1:], **kw)}, "loss, odd shapes", "on the CPU"),
        ({"silu": lambda op, args, kw: op(*args, **kw) * 0.9}, "forward pass, odd shapes", "predictions differ"),
    ],
)
def test_T5_a_wrong_pass_is_told_from_a_right_one(spoils: dict[str, Spoil], name: str, said: str) -> None:
    found = first_failure(training.check_pass(subject(spoils), training.ODD, 2, "odd shapes"))
    assert found.name == name and found.condemns and said in found.detail


def test_T5_a_stale_cache_is_seen_while_decoding() -> None:
    found = first_failure(training.check_decoding(subject({"copy_": faulty.stale_copy})))
    assert found.name == "decoding with a cache" and found.condemns


def test_T5_a_wrong_optimizer_is_seen_in_the_weights() -> None:
    found = first_failure(training.check_steps(subject({"_foreach_addcdiv_": faulty.wrong_addcdiv}), 3))
    assert found.name == "3 optimizer steps" and found.condemns


def test_T5_a_fault_that_comes_late_is_seen_in_the_drift() -> None:
    found = first_failure(training.check_drift(subject({"_foreach_addcdiv_": faulty.wearing_out(after=20)}), 40))
    assert found.name == "drift over 40 steps" and found.condemns and "on the CPU to" in found.detail


def test_T5_steps_that_do_not_repeat_are_noticed_without_condemning() -> None:
    found = first_failure(training.check_steps(subject({"embedding_dense_backward": faulty.embedding_unsteady}), 3))
    assert found.name == "determinism" and not found.condemns and "interrupted" in found.detail


def test_T5_memory_that_grows_is_noticed() -> None:
    found = first_failure(training.check_drift(subject({"mm": faulty.keeper()}), 40))
    assert found.name == "memory" and re.search(r"grows by \d+\.\d+ MB a step", found.detail)


def test_memory_is_judged_by_its_trend() -> None:
    megabyte = 1_000_000
    assert training.judge_memory([500 * megabyte] * 8).ok
    assert training.judge_memory([100 * megabyte, 300 * megabyte, 500 * megabyte, *[500 * megabyte] * 5]).ok  # caches fill at first
    assert training.judge_memory([500 * megabyte, 900 * megabyte, 400 * megabyte]).ok
    assert not training.judge_memory([(500 + 5 * i) * megabyte for i in range(8)]).ok
    assert training.judge_memory([500 * megabyte]).ok


def test_T5_a_wrong_kernel_is_reported_with_versions_and_a_script_that_runs() -> None:
    kernel = next(k for k in kernels.KERNELS if k.probe is kernels.linear_large)
    check = kernels.check_kernel(kernel, subject({"mm": faulty.large_product}), 1_024)
    text = report.upstream_report(MACHINE, Examination(subject({}), (check,), {}), check)
    assert "PyTorch 2.13.0, Linux 6.1, A chip" in text and "aten::mm computes wrong" in text and "[cpu]" in text
    script = re.search(r"```python\n(.*?)```", text, re.S)
    assert script is not None and "positron" not in script[1]
    done = subprocess.run([sys.executable, "-c", script[1]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"result 1: largest error \S+, typical value [678]\.\d+\n", done.stdout)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_operation_has_a_script_that_python_reads(precision: Any) -> None:
    for kernel in kernels.KERNELS:
        compile(kernels.reproduction(kernel, Subject("mps", precision), 2_048), kernel.name, "exec")


# --- a healthy device --------------------------------------------------------------------------------------------------------------


def test_T5_a_healthy_cpu_passes_everything() -> None:
    examination = examine(Subject("cpu", "fp32"), MACHINE, Scope(steps=3, drift_steps=40, speeds=("PicoGPT",)))
    assert not [check for check in examination.checks if not check.ok and check.name != "a quiet machine"]
    names = [check.name for check in examination.checks]
    assert len(names) == len(set(names)) and len(names) >= len(kernels.KERNELS) + 12
    assert examination.finding.is_fit and examination.paces["PicoGPT"].tok_per_s > 0


@pytest.mark.parametrize(("share", "ok"), [(1e-6, True), (3e-4, True), (1e-2, False)])
def test_rounding_passes_and_larger_errors_do_not(share: float, ok: bool) -> None:
    def rounded(operation: Any, args: Any, kwargs: Any) -> Any:
        out = operation(*args, **kwargs)
        return out * (1 + share * torch.randn(out.shape, generator=torch.Generator().manual_seed(0)))

    spoiled = subject({"mm": rounded})
    checks = [kernels.check_kernel(kernel, spoiled, 64) for kernel in kernels.KERNELS[:3]]
    checks += training.check_pass(spoiled, training.ODD, 2, "odd shapes")
    assert all(check.ok for check in checks) is ok
    assert any("less exact than fp32" in check.detail for check in checks) is (share == 3e-4)


def test_products_of_ten_bits_as_in_tf32_are_no_fault_of_a_whole_model() -> None:
    spoiled = subject(dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", ATTENTION), faulty.ten_bits))
    assert next(training.check_steps(spoiled, 20)).ok


def test_bf16_is_judged_by_bf16s_own_measure() -> None:
    wanted = [torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    rounded = [wanted[0].to(torch.bfloat16)]
    assert kernels.compare(rounded, wanted, kernels.ALLOWED["bf16"])[0] == ""
    assert kernels.compare(rounded, wanted, (1e-6, 1e-5))[0] != ""
    assert "not finite" in kernels.compare([wanted[0] / 0], wanted, kernels.ALLOWED["bf16"])[0]
    assert "shape" in kernels.compare([wanted[0][:3]], wanted, kernels.ALLOWED["bf16"])[0]


def test_operations_and_a_small_pass_are_computed_on_all_threads_and_the_rest_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(name: str) -> Any:
        return lambda *_: iter([Check(name, True, str(torch.get_num_threads()))])

    monkeypatch.setattr(kernels, "check_kernels", seen("operations"))
    for name in ("causality", "pass", "decoding", "steps", "drift"):
        monkeypatch.setattr(training, f"check_{name}", seen(name))
    torch.set_num_threads(2)
    found = [(check.name, check.detail) for check in checks_of(Subject("cpu", "fp32"), MACHINE, Scope())]
    assert found == [
        ("operations", "2"), ("causality", "1"), ("pass", "2"), ("decoding", "1"), ("steps", "1"), ("drift", "1"), ("pass", "1"),
    ]  # fmt: skip
    assert torch.get_num_threads() == 2


def test_the_reference_is_computed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "one_pass", lambda *_: torch.get_num_threads())
    torch.set_num_threads(2)
    assert training.reference_pass.__wrapped__(training.ODD, 2) == 1 and torch.get_num_threads() == 2


def test_both_precisions_together_cost_one_reference_and_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on time that no busy machine disturbs: 0.4 TFLOP take 40 s at 10 GFLOP/s, which one core of an old laptop reaches."""
    operations: list[str] = []
    steps: list[int] = []
    passes: list[str] = []
    work = 0.0

    def train(course: training.Course, count: int) -> list[float]:
        nonlocal work
        steps.append(count)
        work += count * course.rows * course.shape.context_len * course.shape.flops_per_token()
        return [1.0] * count

    def one_pass(subject: Subject, shape: Any, rows: int) -> training.Pass:
        nonlocal work
        passes.append(subject.precision)
        work += rows * shape.context_len * shape.flops_per_token() * 4 / 3  # the forward pass is made twice
        return training.Pass(torch.ones(1), 1.0, {"weight": torch.ones(1)})

    monkeypatch.setattr(training.Course, "train", train)
    monkeypatch.setattr(training, "one_pass", one_pass)
    for name in ("reference_course", "reference_pass"):
        monkeypatch.setattr(training, name, cache(getattr(training, name).__wrapped__))
    for name in ("causality", "decoding"):
        monkeypatch.setattr(training, f"check_{name}", lambda *_: iter(()))
    monkeypatch.setattr(kernels, "check_kernel", lambda kernel, *_: operations.append(kernel.name) or Check(kernel.name, True, ""))
    for precision in ("fp32", "bf16"):
        assert all(check.ok for check in checks_of(Subject("cpu", precision), MACHINE, Scope()))  # type: ignore[arg-type]
    assert len(operations) == len(kernels.KERNELS) + sum(kernel.is_product for kernel in kernels.KERNELS)
    assert sum(steps) == 2 * (20 + 5 + 200) + (20 + 200)
    assert passes == ["fp32", "fp32", "fp32", "fp32", "bf16", "bf16"]
    assert 0.2e12 < work < 0.4e12, f"{work / 1e12:.3f} TFLOP"


def test_an_error_in_a_check_is_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Iterator[Check]:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)\nand more")
        yield

    monkeypatch.setattr(training, "check_causality", full)
    monkeypatch.setattr(kernels, "KERNELS", ())
    found = first_failure(checks_of(Subject("cpu", "fp32"), MACHINE, SCOPE))
    assert found == Check("causality", False, "out of memory: MPS backend out of memory (MPS allocated: 5 GB)")


# --- speed -------------------------------------------------------------------------------------------------------------------------


def test_T5_bf16_that_is_emulated_is_skipped_after_one_small_product() -> None:
    examination = examine(subject({"mm": faulty.slow_bf16}, "bf16"), MACHINE, SCOPE)
    assert examination.checks == () and not examination.finding.is_fit
    assert re.search(r"one small product takes [\d,]+ times as long as in fp32", examination.finding.trouble)
    assert "not examined" in report.summary(examination)


@pytest.mark.parametrize(("times", "hopeless"), [(0.5, False), (1.9, False), (2.0, True), (400.0, True), (0.0, False)])
def test_bf16_is_hopeless_at_twice_the_time(times: float, hopeless: bool) -> None:
    assert bool(hopeless_bf16(times)) is hopeless


def test_a_small_product_is_timed_by_the_fastest_without_the_first_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter([0.0, 1.0, 0.0, 3.0, 0.0, 5.0, 0.0, 2.0, 0.0, 9.0, 0.0, 4.0])
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert time_small_product(Subject("cpu", "fp32"), torch.float32, lambda: next(marks)) == 2.0
    assert threads == [1, 7]


@pytest.mark.parametrize(
    ("durations", "calls", "warms_up", "made", "best"),
    [
        ([0.4, 0.5, 0.6], 3, False, 3, 0.4),
        ([1.0, 2.9, 0.5], 3, False, 3, 0.5),
        ([1.0, 3.0, 0.5], 3, False, 2, 1.0),  # a slow machine is timed on what there is
        ([4.0, 3.0, 2.0], 3, False, 1, 4.0),
        ([9.0, 0.5, 0.4], 3, True, 3, 0.4),  # what compiles uses up no patience
        ([9.0, 3.9, 3.0], 3, True, 3, 3.0),
        ([9.0, 4.0, 3.0], 3, True, 2, 4.0),
        ([2.0, 1.0, 0.5], 2, True, 2, 1.0),
    ],
)
def test_a_slow_machine_is_timed_on_fewer_calls(durations: list[float], calls: int, warms_up: bool, made: int, best: float) -> None:
    clock, left = [0.0], iter(durations)

    def once() -> None:
        clock[0] += next(left)

    assert fastest(once, calls, warms_up=warms_up, clock=lambda: clock[0]) == pytest.approx(best)
    assert len(list(left)) == len(durations) - made


def test_a_cpu_is_timed_on_one_row_and_a_gpu_on_as_many_as_training_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(speed, "measure_speed", lambda *_, **asked: rows.append(asked["rows"]) or 1.0)
    monkeypatch.setattr(speed, "_time_update", lambda *_: 1.0)
    monkeypatch.setattr(devices, "torch_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(devices, "forget_cached_memory", lambda _: None)
    for device in ("cpu", "mps"):
        speed.measure_pace(Subject(device, "fp32"), "PicoGPT", M3)  # type: ignore[arg-type]
    assert rows == [1, speed.rows_at_once(preset_shape("PicoGPT"), M3, "mps")] and rows[1] > 1


def test_speed_counts_the_optimizer_once_a_step() -> None:
    pace = Pace(tok_per_s=1_000.0, update_s=1.0)
    assert pace.training(1_000) == 500.0 and pace.training(9_000) == 900.0


def test_a_busy_machine_is_said_without_condemning() -> None:
    before = Usage(0.0, 0.0, 0.0)
    quiet, busy = (speed.judge_quiet(before, Usage(10.0, own_s, 20.0), threads=2, cores=2) for own_s in (12.1, 11.9))
    assert quiet.ok and "60% of the processor was free" in quiet.detail
    assert not busy.ok and not busy.condemns and "close other programs" in busy.detail and busy.name in speed.DISTURBANCES


def test_no_speed_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Pace:
        raise OSError("no compiler")

    monkeypatch.setattr(speed, "measure_pace", broken)
    monkeypatch.setattr(examining, "checks_of", lambda *_: iter(()))
    examination = examine(Subject("cpu", "fp32"), MACHINE, replace(SCOPE, speeds=("TinyGPT",)))
    assert examination.checks == (Check("speed, TinyGPT", False, "fails: no compiler", condemns=False),)
    assert examination.finding.trouble == "could not be timed"


# --- processes that do not end well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "patience", "said"),
    [
        (faulty.abort, 60.0, "the process was ended by SIGABRT after linear layer"),
        (faulty.give_up, 60.0, "the process ended with code 7 at the first operation"),
        (faulty.fall_silent, 0.2, "no answer for 0 s at the first operation"),
    ],
)
def test_T5_a_device_that_ends_the_process_or_never_answers_is_named(work: isolate.Work, patience: float, said: str) -> None:
    told: list[Check] = []
    examination = isolate.examine_apart(Subject("mps", "fp32"), MACHINE, SCOPE, told.append, work=work, patience_s=patience)
    assert told == list(examination.checks)
    assert told[-1] == Check("staying alive", False, said)
    assert examination.finding.trouble == "computes wrong here (staying alive)"


def test_an_examination_apart_is_the_same_as_one_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Check] = []
    scope = Scope(steps=1, drift_steps=1, speeds=(), large=False)
    examination = isolate.examine_apart(Subject("cpu", "fp32"), MACHINE, scope, told.append)
    assert list(examination.checks) == told and all(check.ok for check in told)
    assert [check.name for check in told][: len(kernels.KERNELS)] == [kernel.name for kernel in kernels.KERNELS]


# --- what is made of it ------------------------------------------------------------------------------------------------------------

FAST, SLOW = Pace(20_000.0, 0.5), Pace(1_000.0, 0.5)
BAD = Check("causality", False, "attention sees later tokens")
UNSTEADY = Check("determinism", False, "other bytes", condemns=False)


def examined(device: Any, precision: Any, pace: Pace | None, *checks: Check, skipped: str = "") -> Examination:
    """An examination with that outcome."""
    paces = {} if pace is None else {"TinyGPT": pace, "MicroGPT": Pace(5 * pace.tok_per_s, 0.01)}
    return Examination(Subject(device, precision), checks, paces, skipped)


def reported(monkeypatch: pytest.MonkeyPatch, machine: Machine, *outcomes: Examination) -> tuple[report.Report, list[str]]:
    """The report of a machine whose examinations have these outcomes, and what was said meanwhile."""
    by_name = {outcome.subject.name: outcome for outcome in outcomes}

    def look_up(subject: Subject, machine: Machine, scope: Scope, tell: Any) -> Examination:
        for check in by_name[subject.name].checks:
            tell(check)
        return by_name[subject.name]

    monkeypatch.setattr(report, "examine", look_up)
    monkeypatch.setattr(report, "examine_apart", look_up)
    said: list[str] = []
    return report.diagnose(machine, [outcome.subject for outcome in outcomes], SCOPE, said.append, TODAY), said


OUTCOMES = [
    # mps fp32, mps bf16, cpu fp32 -> what is chosen, and a part of its reason
    ((SLOW,), (FAST,), (SLOW,), "mps bf16", "right"),
    ((FAST,), (SLOW,), (SLOW,), "mps fp32", "bf16 trains 0.05 times as fast"),
    ((FAST,), (FAST,), (SLOW,), "mps fp32", "bf16 trains 1.00 times as fast"),  # equal: the exact one
    ((FAST,), (Pace(20_400, 0.5),), (SLOW,), "mps fp32", "bf16 trains 1.02 times as fast"),  # no gain to speak of
    ((SLOW,), (FAST, BAD), (SLOW,), "mps fp32", "bf16 computes wrong here (causality)"),
    ((SLOW,), (FAST, BAD), (Pace(2_000, 0.5),), "cpu fp32", "mps fp32 trains 0.51 times as fast"),
    ((FAST, BAD), (FAST, BAD, BAD), (SLOW,), "cpu fp32", "mps bf16 computes wrong here (causality and 1 more)"),
    ((FAST, UNSTEADY), (SLOW,), (SLOW,), "mps fp32", "right"),
    ((None, BAD), (None, BAD), (SLOW,), "cpu fp32", "mps fp32 computes wrong here"),
    ((FAST, BAD), (FAST, BAD), (SLOW, BAD), "cpu fp32", "no device here passed"),
]


@pytest.mark.parametrize(("fp32", "bf16", "cpu", "chosen", "reason"), OUTCOMES)
def test_T5_the_fastest_that_is_right_is_chosen_and_obeyed(
    fp32: Any, bf16: Any, cpu: Any, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = (examined("mps", "fp32", *fp32), examined("mps", "bf16", *bf16), examined("cpu", "fp32", *cpu))
    found, _ = reported(monkeypatch, M3, *outcomes)
    assert f"{found.choice.device} {found.choice.precision}" == chosen and reason in found.choice.reason
    assert devices.choose(replace(M3, verdict=found.verdict)) == found.choice
    assert found.is_sound is not any(BAD in outcome.checks for outcome in outcomes)


def test_O6_the_cpus_precisions_are_compared_in_pairs_and_not_by_figures_minutes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"fp32": iter([100.0, 50.0, 10.0]), "bf16": iter([150.0, 75.0, 15.0])}  # a machine that gets busier, and disturbs both alike
    monkeypatch.setattr(speed, "measure_pace", lambda subject, *_: Pace(next(speeds[subject.precision]), 0.5))
    found, _ = reported(monkeypatch, MACHINE, examined("cpu", "fp32", FAST), examined("cpu", "bf16", SLOW))  # apart bf16 seemed far slower
    assert (found.choice.precision, found.disturbance) == ("bf16", "")
    assert found.examinations[1].paces["TinyGPT"].tok_per_s == 1.5 * FAST.tok_per_s


def test_O6_pairs_that_do_not_agree_decide_nothing_for_later_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"fp32": iter([100.0] * 7), "bf16": iter([150.0, 60.0] * 4)}
    monkeypatch.setattr(speed, "measure_pace", lambda subject, *_: Pace(next(speeds[subject.precision]), 0.5))
    found, _ = reported(monkeypatch, MACHINE, examined("cpu", "fp32", FAST), examined("cpu", "bf16", SLOW))
    assert "do not agree" in found.disturbance and found.is_sound


def test_the_doctor_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = reported(
        monkeypatch, M3, examined("mps", "fp32", FAST), examined("mps", "bf16", SLOW, BAD), examined("cpu", "fp32", SLOW)
    )
    # 98,304 tokens take 98,304 / 20,000 + 0.5 = 5.4152 s, 5,000 such steps 7.5 h; 2,048 of MicroGPT 0.03048 s: 29,527 steps in 15 minutes
    assert found.sentence() == (
        "Train with --device mps --precision fp32: expect about 18,153 tokens a second with TinyGPT, 7.5 h for its 5,000 steps of 98,304 "
        "tokens; for 15 minutes: positron train --budget 15m, which chooses model and steps itself (enough for 29,500 steps of "
        "MicroGPT with 2,048 tokens, about 67,192 tokens a second)."
    )
    assert "  mps bf16: causality: attention sees later tokens" in said


def test_nothing_fit_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = reported(monkeypatch, MACHINE, examined("cpu", "fp32", SLOW, BAD), examined("cpu", "bf16", None, skipped="is emulated here"))
    assert found.sentence() == ("Nothing here is fit to train with: cpu fp32 computes wrong here (causality); cpu bf16 is emulated here.")


# --- the command -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clinic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder, and a machine whose examination takes no time."""
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "this_machine", lambda: MACHINE)
    outcomes = {"cpu fp32": examined("cpu", "fp32", SLOW), "cpu bf16": examined("cpu", "bf16", None, skipped="is emulated here")}
    monkeypatch.setattr(report, "examine", lambda subject, *_: outcomes[subject.name])
    return tmp_path


def test_doctor_json_is_the_object_of_the_design_and_nothing_else(clinic: Path) -> None:
    done = positron("doctor", "--json", "--threads", "1").ok()
    found = json.loads(done.out)
    assert {"device", "precision", "checks", "tok_per_s"} <= set(found)
    assert (found["device"], found["precision"], found["tok_per_s"]) == ("cpu", "fp32", 992.4)
    assert all({"name", "ok", "detail"} <= set(check) for check in found["checks"])
    assert found["checks"][-1] == {"name": "cpu bf16: skipped", "ok": True, "detail": "is emulated here", "condemns": False}


def test_the_verdict_is_kept_and_obeyed_by_the_next_run(clinic: Path) -> None:
    assert positron("doctor", "--threads", "1").code == 0
    (path,) = clinic.iterdir()
    verdict, note = devices.read_verdict(path, MACHINE.key)
    assert note == "" and verdict == Verdict(
        (Finding("cpu", "fp32", (), 992.4), Finding("cpu", "bf16", (), None, "is emulated here")), date.today().isoformat()
    )


def test_O6_the_verdict_of_a_busy_machine_is_not_kept_and_an_older_one_stays(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert positron("doctor", "--threads", "1").code == 0
    (path,) = clinic.iterdir()
    before = path.read_bytes()
    busy = Check(speed.QUIET_MACHINE, False, "only 31% of the processor was free for the measurement", condemns=False)
    monkeypatch.setattr(report, "examine", lambda subject, *_: examined(subject.device, subject.precision, Pace(9.0, 0.5), busy))
    monkeypatch.setattr(speed, "measure_pace", lambda *_: Pace(9.0, 0.5))
    done = positron("doctor", "--threads", "1")
    assert done.code == 0 and "warning: the verdict is not kept" in done.err and "only 31%" in done.err
    assert "verdict    not kept" in done.out and path.read_bytes() == before
    found = json.loads(positron("doctor", "--json", "--threads", "1").out)
    assert found["verdict"] is None and "only 31%" in found["disturbed"]


def test_without_a_name_for_it_the_verdict_lies_in_the_users_cache_folder(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSITRON_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: clinic / "home")
    assert positron("doctor", "--threads", "1").code == 0
    (path,) = [path for path in clinic.rglob("*") if path.is_file()]
    assert path == devices.verdict_path(MACHINE.key, "Linux") and path.parent == clinic / "home" / ".cache" / "positron-mini"


def test_an_examination_of_one_device_is_not_remembered(clinic: Path) -> None:
    done = positron("doctor", "--device", "cpu", "--threads", "1")
    assert done.code == 0 and "verdict    not kept" in done.out and not list(clinic.iterdir())


def test_the_doctor_speaks_plainly(clinic: Path) -> None:
    done = positron("doctor", "--threads", "1")
    lines = done.out.splitlines()
    assert lines[0] == "machine    A chip, 2 cores, 4 GB; Linux 6.1" and lines[1] == "torch      2.13.0, AVX2"
    assert lines[2].startswith("kernels    on the CPU ")
    assert lines[3] == "cpu fp32   right, 992 tokens a second with TinyGPT" and lines[4] == "cpu bf16   is emulated here"
    assert lines[-1].startswith("Train with --device cpu --precision fp32: expect about 992 tokens a second")
    assert done.err.splitlines() == [
        "cpu fp32 ...", "  cpu fp32: 0 of 0 checks passed; TinyGPT 992 tokens a second; MicroGPT 4,881 tokens a second",
        "cpu bf16 ...", "  cpu bf16: not examined: it is emulated here",
    ]  # fmt: skip


def test_a_wrong_device_gives_exit_code_1_and_a_report_for_upstream(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Check("linear layer, large output", False, "aten::mm computes wrong", reproduction="import torch\n")
    monkeypatch.setattr(report, "examine", lambda subject, *_: examined(subject.device, subject.precision, SLOW, wrong))
    done = positron("doctor", "--threads", "1")
    assert done.code == 1
    assert "WRONG  linear layer, large output: aten::mm computes wrong" in done.out
    assert "Versions: PyTorch 2.13.0, Linux 6.1, A chip\n\n```python\nimport torch\n```" in done.out
    assert json.loads(positron("doctor", "--json", "--threads", "1").out)["upstream"][0].startswith("[cpu] aten::mm computes wrong")


def test_a_device_that_is_not_here_is_refused(clinic: Path) -> None:
    done = positron("doctor", "--device", "mps")
    assert done.code == 2 and done.sentence == "--device mps: PyTorch sees no such device here, only cpu"


def test_a_cache_that_cannot_be_written_costs_only_the_memory_of_it(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clinic / "file").write_text("")
    monkeypatch.setenv("POSITRON_CACHE", str(clinic / "file"))
    done = positron("doctor", "--threads", "1")
    assert done.code == 0 and "warning: the verdict is not kept" in done.err and "verdict    not kept" in done.out


def test_a_computer_without_a_build_of_torch_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    done = positron("doctor")
    assert done.code == 2 and re.fullmatch(r"torch [\d.]+ has no build for Macs with an Intel processor", done.sentence)
