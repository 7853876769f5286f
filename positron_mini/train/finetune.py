"""Fine-tuning: conversations become masked, packed rows for the same Trainer, beginning from a base model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from positron_mini import device as devices
from positron_mini.chat.conversations import Instructions, encode_conversations, read_conversations, report_lines
from positron_mini.chat.packing import PackedBatches, Stories
from positron_mini.config import SampleConfig, SFTConfig, changed_fields, parse_milestones
from positron_mini.errors import CheckpointError, Say
from positron_mini.evaluate.bits import Score, score_documents, token_logprobs
from positron_mini.export.card import step_card
from positron_mini.files import sha256_of
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.optim import build_optimizer
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.choice import in_words
from positron_mini.store.find import find_checkpoint, usable_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.store.run_record import RunRecord
from positron_mini.store.run_state import look
from positron_mini.text.chat_format import CHAT_TEMPLATE, Encoded, Message, encode_chat
from positron_mini.text.prepare import Prepared, prepare_corpus
from positron_mini.text.tokenizer import EOS
from positron_mini.train.plan import Plan, Request
from positron_mini.train.pretrain import validation_subset
from positron_mini.train.recorder import Recorder, Recording
from positron_mini.train.session import Session, elapsed_before, plan_run, restore, run_record
from positron_mini.train.settings import choose_device, choose_kernels, merge_with_run, same_run
from positron_mini.train.track import NoTracker, open_tracker
from positron_mini.trainer import LoopConfig, StopFlag, Trainer

QUESTIONS = ("Who are you?", "Explain gravity to a child.", "Write a short story about a robot.")
SAMPLING = SampleConfig(max_tokens=60, temperature=0.3, seed=42)
IDENTITY_SETTINGS = (
    *("batch_size", "lr", "muon_lr", "warmup_steps", "weight_decay", "grad_clip"),
    *("dropout", "optimizer", "replay", "val_share", "seed"),
)
FORGETTING_TOKENS = 30_000  # of validation stories, scored before and after


@dataclass(frozen=True)
class Material:
    """What is trained on: the base model, the conversations, and the base text for replay (None where it is not there)."""

    base: ckpt.Checkpoint
    instructions: Instructions
    stories: Prepared | None


def open_sft_session(
    config: SFTConfig, *, given: frozenset[str] | None = None, say: Say = lambda _: None, stop: StopFlag | None = None
) -> Session:
    """The fine-tuning that `config` asks for, new or continued, after every check has passed; the run folder is not touched yet.

    Errors: PositronError of every kind; DataError naming file and line for conversations that cannot be used.
    """
    given = changed_fields(config) if given is None else given
    config, run = _place(config, say)
    config, recorded = merge_with_run(config, given, run, "sft")
    base = find_base(config.base_ckpt, say)
    ckpt.check_tokenizer(config.tokenizer_path, base)
    material = Material(base, read_instructions(config, base, say), find_stories(config, base, say))
    identity = sft_identity(config, material)
    if recorded is not None:
        same_run(run, recorded, identity)
    config = replace(config, base_ckpt=str(base.folder), out_dir=str(run.path))
    keeps_horizon = recorded is not None and "epochs" not in given
    return _build(config, run, recorded, material, identity, say, stop or StopFlag(), keeps_horizon=keeps_horizon)


def find_base(path: str | None, say: Say) -> ckpt.Checkpoint:
    """The base model to begin from. Errors: CheckpointError when there is none, or it was fine-tuned already."""
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


def _place(config: SFTConfig, say: Say) -> tuple[SFTConfig, RunFolder]:
    """The run folder; without one named, that of the base model, which the configuration then names. A run that is there knows its base."""
    if config.out_dir is not None:
        return config, RunFolder(Path(config.out_dir))
    base = find_base(config.base_ckpt, say)
    return replace(config, base_ckpt=str(base.folder)), RunFolder(Path(default_sft_dir(base)))


def default_sft_dir(base: ckpt.Checkpoint) -> str:
    """The run folder for a base: its own name with -sft for -base, under runs/."""
    run = base.folder.resolve().parent
    return str(Path("runs") / (run.name.removesuffix("-base") + "-sft"))


def read_instructions(config: SFTConfig, base: ckpt.Checkpoint, say: Say) -> Instructions:
    """The conversations as masked ids; `say` is told the report. Errors: DataError naming file and line."""
    read = read_conversations(config.sft_data, skip_bad=config.skip_bad)
    instructions = encode_conversations(
        base.tokenizer, read, context_len=base.config.context_len, validation_share=config.val_share, skip_bad=config.skip_bad
    )
    for line in report_lines(instructions.report):
        say(line)
    return instructions


def find_stories(config: SFTConfig, base: ckpt.Checkpoint, say: Say) -> Prepared | None:
    """The base text, prepared with the base's tokenizer, for replay; None, with a note, where it is not there and was not named."""
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
    """What makes two commands the same fine-tuning."""
    manifest = ckpt.read_manifest(material.base.folder)
    return {
        "base": manifest[ckpt.MODEL_FILE]["sha256"],
        "data": sha256_of(Path(config.sft_data)),
        "tokenizer": material.base.tokenizer.fingerprint,
        "text": material.stories.content_fingerprint if material.stories else None,
        **{name: getattr(config, name) for name in IDENTITY_SETTINGS},
    }


def _build(
    config: SFTConfig,
    run: RunFolder,
    recorded: RunRecord | None,
    material: Material,
    identity: dict[str, Any],
    say: Say,
    stop: StopFlag,
    *,
    keeps_horizon: bool,
) -> Session:
    """Plan, model, trainer and recorder of a fine-tuning."""
    base, machine = material.base, devices.this_machine()
    choice = choose_device(config, machine, recorded, say)
    stories = material.stories
    replayed = None if stories is None else Stories(stories.train.ids, stories.train.documents(), stories.train.check_unchanged)
    source = PackedBatches(
        material.instructions.train,
        batch_size=config.batch_size,
        context_len=base.config.context_len,
        seed=config.seed,
        replay=config.replay if replayed is not None else 0.0,
        stories=replayed,
    )
    horizon = None if keeps_horizon else config.epochs * source.steps_per_epoch
    request = Request(
        max_steps=horizon,
        until_step=config.until_step,
        more_steps=config.more_steps,
        resume_from_step=config.resume_from_step,
        cooldown_steps=config.cooldown_steps,
    )
    plan, newest = plan_run(run, recorded, request, config.warmup_steps, say)
    rows = config.micro_batch or devices.micro_batch_rows(base.config, base.config.context_len, 64, choice.device, machine.memory_bytes)
    threads = devices.set_threads(config.threads)
    kernels = choose_kernels(config, base.config, choice.device, recorded, say)
    config = replace(config, device=choice.device, precision=choice.precision, micro_batch=rows, threads=threads, kernels=kernels)
    model = ckpt.load_model(base).to(devices.torch_device(choice.device)).train()
    # no compiler: rows differ in width from step to step, which it would pay for again and again
    loop = LoopConfig(
        lr=config.lr,
        schedule=plan.schedule,
        micro_batch=rows,
        grad_clip=config.grad_clip,
        dropout=config.dropout,
        seed=config.seed,
        device=choice.device,
        precision=choice.precision,
        compile=False,
        native=kernels == "native",
        grad_limit=config.grad_limit,
        max_skips=config.max_skips if config.on_nan == "skip" else 0,
    )
    optimizer = build_optimizer(model, config.optimizer, lr=config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay)
    trainer = Trainer(model, optimizer, source, loop, elapsed_s=elapsed_before(run, plan.start))
    restore(trainer, newest, plan)
    tracker = NoTracker() if plan.finished else open_tracker(config.track, run.path)
    recorder = Recorder(run, trainer, _recording(config, run, material), tracker)
    record = run_record("sft", asdict(config), recorded, identity, plan, choice)
    lines = [] if plan.finished else _lines(config, material, source, plan, choice)
    return Session(config, run, plan, lines, trainer, recorder, record, stop, base.tokenizer, run.steps())


def answer_score(model: GPT, rows: Sequence[Encoded], tokenizer: Any, *, device: str, precision: str) -> Score:
    """The sums over the trained tokens of conversations: nats, tokens, UTF-8 bytes of the answers, conversations."""
    logprobs = token_logprobs(model, [row.ids for row in rows], device=device, precision=precision)
    nats, count, size = 0.0, 0, 0
    for row, values in zip(rows, logprobs, strict=True):
        trained = [i for i in range(1, len(row.ids)) if row.trained[i]]
        nats -= float(values[[i - 1 for i in trained]].double().sum())
        count += len(trained)
        size += len(tokenizer.decode([row.ids[i] for i in trained]).encode())
    return Score(nats, count, size, len(rows))


def story_score(model: GPT, stories: Prepared, *, device: str = "cpu", precision: str = "fp32") -> Score:
    """How well the model still tells the stories it was pretrained on, on a fixed part of their validation documents."""
    documents, byte_counts = validation_subset(stories, FORGETTING_TOKENS)
    return score_documents(model, documents, byte_counts, device=device, precision=precision)


def answer(model: GPT, tokenizer: Any, question: str, config: SampleConfig, end_ids: frozenset[int]) -> str:
    """The model's answer to one question."""
    prompt = encode_chat(tokenizer, [Message("user", question)], add_generation_prompt=True).ids
    return generate(model, tokenizer, prompt, config, end_ids=end_ids)[0].text


def _recording(config: SFTConfig, run: RunFolder, material: Material) -> Recording:
    tokenizer, held_out = material.base.tokenizer, material.instructions.validation
    title = run.path.name

    def evaluate(model: GPT) -> Score:
        rows = held_out or material.instructions.train[:64]
        return answer_score(model, rows, tokenizer, device=config.device, precision=config.precision)

    def observe(model: GPT, step: int) -> None:
        ends = frozenset({EOS, tokenizer.im_end_id})
        for question in QUESTIONS:
            text = answer(model, tokenizer, question, SAMPLING, ends)
            run.log("samples", {"step": step, "prompt": question, "text": text, "seed": SAMPLING.seed, "temperature": SAMPLING.temperature})
        if material.stories is not None:
            score = story_score(model, material.stories, device=config.device, precision=config.precision)
            run.log("stories", {"step": step, "story_loss": score.loss, "story_bpb": score.bits_per_byte})

    def folder_texts(step: int, seen: int, report: StepReport | None) -> dict[str, bytes]:
        facts: dict[str, Any] = {"base model": material.base.folder.resolve().parent.name, "conversations": Path(config.sft_data).name}
        facts |= {"step": f"{step:,}", "tokens read": f"{seen:,}"}
        if report is not None and report.val_loss is not None:
            facts["validation"] = f"{report.val_loss:.3f} nats per answer token"
        card = step_card(title, material.base.config, facts, is_chat=True)
        return ckpt.model_files(material.base.config, tokenizer, chat_template=CHAT_TEMPLATE, card=card)

    milestones = parse_milestones(config.milestones)
    return Recording(config.save_every, config.eval_every, milestones, evaluate, observe, folder_texts, evaluate_first=True)


def _lines(config: SFTConfig, material: Material, source: PackedBatches, plan: Plan, choice: devices.Choice) -> list[str]:
    replay = f"{config.replay:.0%} of the trained tokens are stories again" if source.stories_per_step else "no stories are replayed"
    horizon = plan.schedule.horizon
    lines = [
        f"base       {material.base.folder} ({material.base.config.parameters:,} parameters)",
        f"rows       {source.examples:,} conversations, {config.batch_size} a step; {replay}",
        f"device     {choice.device}, {choice.precision} ({choice.reason}), {config.threads} threads",
        f"steps      {plan.start + 1:,} to {horizon:,}, {source.steps_per_epoch:,} an epoch; {config.optimizer}, lr {config.lr:g}",
    ]
    return lines + ([f"run        {plan.say}"] if plan.say else [])
