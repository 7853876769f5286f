"""Where and how to compute: device, precision, batch, memory. The only package that names a backend; its decisions are pure functions.

What this machine offers is a `Machine`, what was measured on it a `Verdict`; everything else follows from the two, so that tests can
decide for machines they do not have. `machine` asks and acts, `policy` decides, `verdict` remembers, `power` watches sleep and heat.
"""

from positron_mini.device.machine import (
    Machine,
    autocast,
    describe_versions,
    forget_cached_memory,
    has_compiler,
    is_out_of_memory,
    multiplies_by_mkl,
    peak_memory,
    prepare_environment,
    set_threads,
    synchronize,
    take_local,
    this_machine,
    torch_device,
    total_memory,
    usable_cores,
    used_memory,
)
from positron_mini.device.policy import (
    BATCH_TOKENS,
    MAX_LOGITS_BYTES,
    Choice,
    choose,
    known_fault,
    memory_limits,
    micro_batch_rows,
    should_compile,
    unsupported,
)
from positron_mini.device.power import SpeedWatch, awake, keep_awake_command, share_of_usual_speed
from positron_mini.device.verdict import BF16_GAIN, DeviceName, Finding, Precision, Verdict, read_verdict, verdict_path, write_verdict

__all__ = [
    "BATCH_TOKENS",
    "BF16_GAIN",
    "MAX_LOGITS_BYTES",
    "Choice",
    "DeviceName",
    "Finding",
    "Machine",
    "Precision",
    "SpeedWatch",
    "Verdict",
    "autocast",
    "awake",
    "choose",
    "describe_versions",
    "forget_cached_memory",
    "has_compiler",
    "is_out_of_memory",
    "keep_awake_command",
    "known_fault",
    "memory_limits",
    "micro_batch_rows",
    "multiplies_by_mkl",
    "peak_memory",
    "prepare_environment",
    "read_verdict",
    "set_threads",
    "share_of_usual_speed",
    "should_compile",
    "synchronize",
    "take_local",
    "this_machine",
    "torch_device",
    "total_memory",
    "unsupported",
    "usable_cores",
    "used_memory",
    "verdict_path",
    "write_verdict",
]
