"""`positron bootstrap`: from nothing to a model in one command; started again, it continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron_mini.cli.flags import note, parse
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.config import TrainConfig, check_ranges, given_flags
from positron_mini.errors import command
from positron_mini.store.opening import try_it

if TYPE_CHECKING:
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.store.run_logs import Sample
    from positron_mini.store.run_record import RunRecord

CPU_BUDGET = "10m"
CPU_BATCH_TOKENS = 2_048
CPU_PRESET = "MicroGPT"
# stories of the story world repeat their names; with these settings a small model learns to copy them within minutes on a CPU
# (docs/results/recipes.md). A story fits into half a context, and rows stay that short: longer ones would include the previous story
STORYWORLD_SETTINGS: dict[str, Any] = {
    "embedding_std": 0.3,
    "copy_init": 0.2,
    "lr": 1.2e-2,
    "align_rows": True,
    "short_steps": 1_000_000,
}
STORYWORLD_CPU_SETTINGS: dict[str, Any] = {"config": "PicoGPT", "vocab_size": 3_072, "context_len": 512}
CPU_STORIES = 20_000  # enough for minutes on a CPU, instead of 2.2 GB of TinyStories
GPU_STEPS = 5_000


@dataclass(frozen=True)
class BootstrapFlags(TrainConfig):
    """Data, tokenizer, training, samples: everything from nothing to a model. All flags of train are accepted too."""

    dataset: str = "auto"
    """tinystories, storyworld, a hub data set or a path (default: tinystories, without a network the story world)"""
    steps: int | None = None
    """the same as --max_steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"steps": 1})


def choose_dataset(dataset: str) -> str:
    """The data set to use: for `auto` TinyStories if the hub answers, else the story world, with a note."""
    if dataset != "auto":
        return dataset
    for name in ("tinystories", "storyworld"):  # use what an earlier start fetched, with or without a network
        if Path(f"data/{name}.json").is_file():
            return name
    from positron_mini.text.corpus.hub import hub_reachable

    if hub_reachable():
        return "tinystories"
    note("no network (the Hugging Face hub does not answer): going on with the story world, the corpus in the box")
    return "storyworld"


def for_data_set(flags: BootstrapFlags, given: frozenset[str], device: str) -> tuple[BootstrapFlags, frozenset[str]]:
    """The flags with the data set chosen and, for the story world, its settings unless given; and the names of flags now settled."""
    if flags.dataset_path is None:
        flags = replace(flags, dataset=choose_dataset(flags.dataset))
    if (flags.dataset if flags.dataset_path is None else Path(flags.dataset_path).stem) != "storyworld":
        return flags, given
    chooses_shape = device == "cpu" and "config" not in given  # a preset that was given keeps its vocabulary and context
    decided = given | ({"vocab_size"} if "tokenizer_path" in given else frozenset())
    settings = {**STORYWORLD_SETTINGS, **(STORYWORLD_CPU_SETTINGS if chooses_shape else {})}
    settings = {name: value for name, value in settings.items() if name not in decided}
    return replace(flags, **settings), given | settings.keys()


def fill_defaults(flags: BootstrapFlags, device: str) -> BootstrapFlags:
    """The flags with a default length of training: TinyGPT for 5,000 steps on a GPU, the best model of ten minutes on a CPU."""
    steps = flags.max_steps if flags.steps is None else flags.steps
    if steps is not None or flags.budget is not None or flags.finish:
        return replace(flags, max_steps=steps)
    return replace(flags, budget=CPU_BUDGET) if device == "cpu" else replace(flags, max_steps=GPU_STEPS)


def small_steps(flags: Any, given: frozenset[str], device: str) -> Any:
    """The flags with the preset and tokens per step that suit a CPU, if this is one and none were given."""
    if device != "cpu":
        return flags
    return replace(flags, config=flags.config if "config" in given else CPU_PRESET, batch_tokens=flags.batch_tokens or CPU_BATCH_TOKENS)


def train_flags(flags: TrainConfig, text: Path) -> TrainConfig:
    """Bootstrap's flags as those of `positron train`."""
    values = {field.name: getattr(flags, field.name) for field in fields(TrainConfig)}
    return TrainConfig(**{**values, "dataset_path": str(text)})


def run(argv: Sequence[str]) -> int:
    """Bootstrap; 0 when the model is trained."""
    flags, given = parse(BootstrapFlags, argv, "bootstrap"), given_flags(list(argv))
    from positron_mini import device as devices
    from positron_mini.cli.train import train
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.train.budget import existing_run
    from positron_mini.train.find_run import default_out_dir

    machine = devices.this_machine()
    choice = devices.choose(machine, flags.device, flags.precision)
    flags = fill_defaults(flags, choice.device)

    def find_run() -> RunFolder | None:
        """The existing run; without a budget also the one that would begin."""
        if flags.budget is not None:
            return existing_run(flags, given)
        return RunFolder(Path(flags.out_dir or default_out_dir(small_steps(flags, given, choice.device))))

    run_folder = find_run()
    recorded = None if run_folder is None else run_folder.read()
    if recorded is None:
        flags, given = for_data_set(flags, given, choice.device)
        run_folder = find_run()  # the data set may have chosen another preset
        recorded = None if run_folder is None else run_folder.read()
    if flags.budget is None:
        flags = small_steps(flags, given, choice.device)
    text = find_text(flags, recorded, choice.device)
    folder = flags.out_dir if run_folder is None else str(run_folder.path)
    if recorded is not None and flags.steps is None and "max_steps" not in given:
        flags = replace(flags, max_steps=None, budget=flags.budget if "budget" in given else recorded.config.get("budget"))
    show_samples(train(replace(train_flags(flags, text), out_dir=folder), given | {"dataset_path"}))
    return 0


def find_text(flags: Any, recorded: RunRecord | None, device: str) -> Path:
    """The text to train on: that of a run to continue, else the one of `--dataset` or `--dataset_path`, fetched or made if necessary."""
    from positron_mini.text.corpus.sources import obtain

    if flags.dataset_path is not None:
        return Path(flags.dataset_path)
    if recorded is not None and flags.dataset == "auto":
        return recorded.text
    dataset = choose_dataset(flags.dataset)
    part = CPU_STORIES if device == "cpu" and dataset == "tinystories" else None
    return obtain(dataset, stories=part, seed=flags.seed, say=note)


def newest_samples(run: RunFolder) -> list[Sample]:
    """The milestone samples of the newest step that has some."""
    from positron_mini.store.run_logs import Sample, log_path, typed_rows

    rows = list(typed_rows(Sample, log_path(run.path, "samples")))
    return [row for row in rows if row.step == rows[-1].step]


def show_samples(run: RunFolder) -> None:
    """Print the loss curve and the newest milestone samples of a run, and what to type next."""
    from positron_mini.cli.curve import print_curve
    from positron_mini.cli.terminal import printable

    print("\nloss (nats per token)")
    print_curve(run)
    rows = newest_samples(run)
    for row in rows:
        print(f"\n[step {row.step:,}, temperature {row.temperature}]\n{row.prompt}{printable(row.text)}")
    print(f"\nyour model is in {run.path}. Next:")
    steps = {
        "let it write": try_it(run.path, run.path),
        "teach it to answer questions": command("quicksft", "--base_ckpt", run.path),
    }
    if rows:
        steps["train it further"] = command("bootstrap", "--out_dir", run.path, "--steps", 2 * max(rows[-1].step, 1))
    width = max(len(here(line)) for line in steps.values())
    for what, line in steps.items():
        print(f"  {here(line):<{width}}   {what}")
