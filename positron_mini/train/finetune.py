"""Fine-tuning as a task: a base model, conversations as masked and packed rows, and replayed stories against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from positron_mini import device as devices
from positron_mini.chat.conversations import Instructions, encode_conversations, read_conversations, report_lines
from positron_mini.chat.packing import PackedBatches, Stories
from positron_mini.config import SampleConfig, SFTConfig, changed_fields
from positron_mini.errors import CheckpointError, Say
from positron_mini.evaluate.bits import Score, score_documents, token_logprobs
from positron_mini.export.card import step_card
from positron_mini.files import sha256_of
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.choice import in_words
from positron_mini.store.find import find_checkpoint, usable_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.store.run_state import look
from positron_mini.text.chat_format import CHAT_TEMPLATE, Encoded, Message, encode_chat
from positron_mini.text.prepare import Prepared, prepare_corpus
from positron_mini.text.tokenizer import EOS, Tokenizer
from positron_mini.train.find_run import merge_with_run, same_run
from positron_mini.train.open_run import build, plan_run
from positron_mini.train.plan import Plan, Request
from positron_mini.train.pretrain import validation_subset
from positron_mini.train.session import Session
from positron_mini.train.settings import Settings, decide_sft
from positron_mini.trainer import BatchSource, StopFlag, Trainer

QUESTIONS = ("Who are you?", "Explain gravity to a child.", "Write a short story about a robot.")
SAMPLING = SampleConfig(max_tokens=60, temperature=0.3, seed=42)
IDENTITY_SETTINGS = (
    *("batch_size", "lr", "muon_lr", "warmup_steps", "weight_decay", "grad_clip"),
    *("dropout", "optimizer", "replay", "val_share", "seed"),
)
FORGETTING_TOKENS = 30_000  # of validation stories, scored before and after


@dataclass(frozen=True)
class Material:
    """Training material: the base model, the conversations, and the base text for replay (None if it is missing)."""

    base: ckpt.Checkpoint
    instructions: Instructions
    stories: Prepared | None


def open_sft_session(
    config: SFTConfig, *, given: frozenset[str] | None = None, say: Say = lambda _: None, stop: StopFlag | None = None
) -> Session:
    """Open the fine-tuning that `config` asks for, new or continued.

    Errors: PositronError of every kind; DataError naming file and line for conversations that cannot be used.
    """
    given = changed_fields(config) if given is None else given

    # 1. Find the run: the named folder, or that of the base model.
    config, run = find_folder(config, say)
    config, recorded = merge_with_run(config, given, run, "sft")

    # 2. Prepare the text: the base model, the conversations as token ids, the stories to replay.
    config, material = read_material(replace(config, out_dir=str(run.path)), say)

    # 3. Decide every setting that is still open.
    settings = decide_sft(config, material.base.config, recorded, devices.this_machine(), say)
    task = FineTuning(settings.recorded_in(config), settings, material)
    if recorded is not None:
        same_run(run, recorded, task.identity)

    # 4. Plan the steps.
    keeps_horizon = recorded is not None and "epochs" not in given
    request = Request.of(config, None if keeps_horizon else task.steps)
    plan, checkpoint = plan_run(run, recorded, request, config.warmup_steps, say)

    # 5. Build.
    return build(task, run, recorded, plan, checkpoint, stop=stop)


def find_base(path: str | None, say: Say) -> ckpt.Checkpoint:
    """Open the base model's checkpoint. Errors: CheckpointError when there is none, or it was fine-tuned already."""
    if path is None:
        newest = next((run for run in usable_runs(talks=False, say=say) if run.kind == "pretrain"), None)
        if newest is None:
            raise CheckpointError(
                "no base model under runs/ to fine-tune", "positron bootstrap trains one, or name one with --base_ckpt"
            )
        path = str(newest.path)
        say(f"base model: {path} ({in_words(newest)})")
    base = find_checkpoint(path, say=say)
    if base.is_chat:
        raise CheckpointError(f"{path}: a fine-tuned model already", "name a base model with --base_ckpt")
    return base


def find_folder(config: SFTConfig, say: Say) -> tuple[SFTConfig, RunFolder]:
    """The run folder; if none is named, it follows from the base model, which `config` then names. An existing run knows its base."""
    if config.out_dir is not None:
        return config, RunFolder(Path(config.out_dir))
    base = find_base(config.base_ckpt, say)
    return replace(config, base_ckpt=str(base.folder)), RunFolder(Path(default_sft_dir(base)))


def default_sft_dir(base: ckpt.Checkpoint) -> str:
    """Run folder for a base: its own name with -sft for -base, under runs/."""
    run = base.folder.resolve().parent
    return str(Path("runs") / (run.name.removesuffix("-base") + "-sft"))


def read_material(config: SFTConfig, say: Say) -> tuple[SFTConfig, Material]:
    """Read the training material; also return `config` with the base model's folder. `say` is told about conversations and stories."""
    base = find_base(config.base_ckpt, say)
    ckpt.check_tokenizer(config.tokenizer_path, base)
    material = Material(base, read_instructions(config, base, say), find_stories(config, base, say))
    return replace(config, base_ckpt=str(base.folder)), material


def read_instructions(config: SFTConfig, base: ckpt.Checkpoint, say: Say) -> Instructions:
    """Read the conversations as masked ids; `say` is told the report. Errors: DataError naming file and line."""
    read = read_conversations(config.sft_data, skip_bad=config.skip_bad)
    instructions = encode_conversations(
        base.tokenizer, read, context_len=base.config.context_len, validation_share=config.val_share, skip_bad=config.skip_bad
    )
    for line in report_lines(instructions.report):
        say(line)
    return instructions


def find_stories(config: SFTConfig, base: ckpt.Checkpoint, say: Say) -> Prepared | None:
    """Prepare the base text with the base's tokenizer for replay; None, with a note, if it is missing and was not named."""
    source = config.replay_path
    if source is None:
        record = look(base.folder.resolve().parent).record
        source = None if record is None else str(record.text)
    if config.replay_path is None and (source is None or not Path(source).exists()):
        if config.replay:
            say(f"no replay: the base model's text ({source or 'unknown'}) is not here; name one with --replay_path, or expect forgetting")
        return None
    return prepare_corpus(Path(str(source)), tokenizer_path=base.folder / "tokenizer.model", vocab_size=None, say=say)


def sft_identity(config: SFTConfig, material: Material) -> dict[str, Any]:
    """Settings that make two commands the same fine-tuning."""
    manifest = ckpt.read_manifest(material.base.folder)
    return {
        "base": manifest[ckpt.MODEL_FILE]["sha256"],
        "data": sha256_of(Path(config.sft_data)),
        "tokenizer": material.base.tokenizer.fingerprint,
        "text": material.stories.content_fingerprint if material.stories else None,
        **{name: getattr(config, name) for name in IDENTITY_SETTINGS},
    }


@dataclass(frozen=True)
class FineTuning:
    """A Task: a base model learns to answer from conversations, with some of its stories mixed in against forgetting."""

    config: SFTConfig
    settings: Settings
    material: Material

    kind = "sft"
    facts: ClassVar[dict[str, Any]] = {}
    momentum_warmup = 0
    scores_first = True
    points_best = True

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer."""
        return self.material.base.tokenizer

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Settings that make two commands the same fine-tuning."""
        return sft_identity(self.config, self.material)

    def model(self) -> GPT:
        """The base model."""
        return ckpt.load_model(self.material.base).train()

    @cached_property
    def _packed(self) -> PackedBatches:
        stories = self.material.stories
        replayed = None if stories is None else Stories(stories.train.ids, stories.train.documents(), stories.train.check_unchanged)
        return PackedBatches(
            self.material.instructions.train,
            batch_size=self.config.batch_size,
            context_len=self.settings.shape.context_len,
            seed=self.config.seed,
            replay=self.config.replay if replayed is not None else 0.0,
            stories=replayed,
        )

    def batches(self) -> BatchSource:
        """Packed conversations with replayed stories."""
        return self._packed

    @property
    def steps(self) -> int:
        """Number of steps in all epochs."""
        return self.config.epochs * self._packed.steps_per_epoch

    def evaluate(self, model: GPT) -> Score:
        """Loss of the held-out answers; of the first 64 conversations if none are held out."""
        instructions, choice = self.material.instructions, self.settings.choice
        rows = instructions.validation or instructions.train[:64]
        return answer_score(model, rows, self.tokenizer, device=choice.device, precision=choice.precision)

    def observe(self, run: RunFolder, model: GPT, step: int, *, is_end: bool) -> None:
        """Write answers to a few questions, and how well the model still tells stories."""
        ends, choice = frozenset({EOS, self.tokenizer.im_end_id}), self.settings.choice
        for question in QUESTIONS:
            text = answer(model, self.tokenizer, question, SAMPLING, ends)
            run.log("samples", {"step": step, "prompt": question, "text": text, "seed": SAMPLING.seed, "temperature": SAMPLING.temperature})
        if self.material.stories is not None:
            score = story_score(model, self.material.stories, device=choice.device, precision=choice.precision)
            run.log("stories", {"step": step, "story_loss": score.loss, "story_bpb": score.bits_per_byte})

    def texts(self, run: RunFolder, step: int, seen: int, report: StepReport | None) -> dict[str, bytes]:
        """Files of a chat model's folder."""
        base = self.material.base
        facts = {"base model": base.folder.resolve().parent.name, "conversations": Path(self.config.sft_data).name}
        facts |= {"step": f"{step:,}", "tokens read": f"{seen:,}"}
        if report is not None and report.val_loss is not None:
            facts["validation"] = f"{report.val_loss:.3f} nats per answer token"
        card = step_card(run.path.name, base.config, facts, is_chat=True)
        return ckpt.model_files(base.config, self.tokenizer, chat_template=CHAT_TEMPLATE, card=card)

    def lines(self, run: RunFolder, trainer: Trainer, plan: Plan) -> list[str]:
        """First lines of a run: base, conversations, device and why, steps."""
        config, source, base, choice = self.config, self._packed, self.material.base, self.settings.choice
        replay = f"{config.replay:.0%} of the trained tokens are stories again" if source.stories_per_step else "no stories are replayed"
        lines = [
            f"base       {base.folder} ({base.config.parameters:,} parameters)",
            f"rows       {source.examples:,} conversations, {config.batch_size} a step; {replay}",
            f"device     {choice.device}, {choice.precision} ({choice.reason}), {self.settings.threads} threads",
            f"steps      {plan.start + 1:,} to {plan.schedule.horizon:,}, {source.steps_per_epoch:,} an epoch; "
            f"{config.optimizer}, lr {config.lr:g}",
        ]
        return lines + ([f"run        {plan.say}"] if plan.say else [])


def answer_score(model: GPT, rows: Sequence[Encoded], tokenizer: Any, *, device: str, precision: str) -> Score:
    """Sums over the trained tokens of conversations: nats, tokens, UTF-8 bytes of the answers, conversations."""
    logprobs = token_logprobs(model, [row.ids for row in rows], device=device, precision=precision)
    nats, count, size = 0.0, 0, 0
    for row, values in zip(rows, logprobs, strict=True):
        trained = [i for i in range(1, len(row.ids)) if row.trained[i]]
        nats -= float(values[[i - 1 for i in trained]].double().sum())
        count += len(trained)
        size += len(tokenizer.decode([row.ids[i] for i in trained]).encode())
    return Score(nats, count, size, len(rows))


def story_score(model: GPT, stories: Prepared, *, device: str = "cpu", precision: str = "fp32") -> Score:
    """Loss on a fixed part of the base text's validation documents, to see what the model forgets."""
    documents, byte_counts = validation_subset(stories, FORGETTING_TOKENS)
    return score_documents(model, documents, byte_counts, device=device, precision=precision)


def answer(model: GPT, tokenizer: Any, question: str, config: SampleConfig, end_ids: frozenset[int]) -> str:
    """The model's answer to one question."""
    prompt = encode_chat(tokenizer, [Message("user", question)], add_generation_prompt=True).ids
    return generate(model, tokenizer, prompt, config, end_ids=end_ids)[0].text
