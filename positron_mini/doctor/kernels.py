"""Single operations, in shapes in which they have been wrong before, compared with the CPU in double precision.

A probe is a function of `put`, which moves a tensor: to the device, or for the reference to the CPU in double precision. Its source is also
the script for PyTorch's bug tracker, so it uses only torch, F and `drawn`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from positron_mini.doctor.subject import Check, Subject, drawn

Put = Callable[[Tensor], Tensor]
Probe = Callable[[Put], list[Tensor]]


# --- products ----------------------------------------------------------------------------------------------------------------------


def linear_odd(put: Put) -> list[Tensor]:
    """A linear layer with odd sizes, and its two gradients."""
    x, w = put(drawn(37, 321)).requires_grad_(), put(drawn(1_001, 321, seed=1)).requires_grad_()
    y = F.linear(x, w)
    return [y, *torch.autograd.grad(y, (x, w), put(drawn(37, 1_001, seed=2)))]


def linear_3d(put: Put) -> list[Tensor]:
    """A linear layer on input of three and four dimensions, as inside a block, and its two gradients."""
    found = []
    for shape, outputs in (((3, 129, 96), 160), ((6, 6, 634), 634), ((1, 3, 28, 315), 315)):
        x, w = put(drawn(*shape)).requires_grad_(), put(drawn(outputs, shape[-1], seed=1)).requires_grad_()
        y = F.linear(x, w)
        found += [y, *torch.autograd.grad(y, (x, w), put(drawn(*shape[:-1], outputs, seed=2)))]
    return found


def linear_large(put: Put, tokens: int = 2_048) -> list[Tensor]:
    """The output head for a whole micro-batch: a matmul with millions of results."""
    x, w = drawn(tokens, 64), put(drawn(16_000, 64, seed=1))
    rows = torch.tensor([0, 1, tokens // 3, tokens // 2, tokens - 2, tokens - 1])
    if w.dtype == torch.float64:
        return [F.linear(put(x[rows]), w)]
    return [F.linear(put(x), w)[rows.to(w.device)]]


def linear_large_3d(put: Put, tokens: int = 2_048) -> list[Tensor]:
    """The same on three-dimensional input, which uses another kernel."""
    x, w = drawn(8, tokens // 8, 64), put(drawn(16_000, 64, seed=1))
    if w.dtype == torch.float64:
        return [F.linear(put(x[:, -2:]), w)]
    return [F.linear(put(x), w)[:, -2:]]


def long_sum(put: Put, tokens: int = 2_048) -> list[Tensor]:
    """The gradient of a weight: a matmul that sums over all tokens of a micro-batch."""
    return [put(drawn(tokens, 96)).mT @ put(drawn(tokens, 80, seed=1))]


def longer_sum(put: Put) -> list[Tensor]:
    """The same over more tokens than any micro-batch has."""
    rubbish = [put(torch.full((40_000, 96), 1e9)) for _ in range(3)]  # memory that a faulty kernel may read beyond its operands
    del rubbish
    return [put(drawn(40_000, 96)).mT @ put(drawn(40_000, 80, seed=1))]


def batched_product(put: Put) -> list[Tensor]:
    """baddbmm with factors, on transposed input, as Muon's iteration uses it."""
    x = put(drawn(3, 160, 96)).mT
    gram = x @ x.mT
    return [gram, torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315) * 1e-3, x, beta=3.4445)]


# --- attention ---------------------------------------------------------------------------------------------------------------------


def attention_odd(put: Put) -> list[Tensor]:
    """Causal attention over an odd number of tokens, without gradients."""
    q, k, v = (put(drawn(2, 3, 127, 32, seed=i)) for i in range(3))
    with torch.no_grad():
        return [F.scaled_dot_product_attention(q, k, v, is_causal=True)]


def attention_even(put: Put) -> list[Tensor]:
    """Causal attention over 64 and 512 tokens, heads of 64 and 32, without gradients."""
    found = []
    for tokens, size in ((64, 64), (512, 32)):
        q, k, v = (put(drawn(1, 4, tokens, size, seed=i)) for i in range(3))
        with torch.no_grad():
            found.append(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return found


def attention_gradients(put: Put) -> list[Tensor]:
    """Causal attention over even and odd numbers of tokens, and its three gradients."""
    found = []
    for tokens in (33, 128):
        q, k, v = (put(drawn(2, 3, tokens, 32, seed=i)).requires_grad_() for i in range(3))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        found += [y, *torch.autograd.grad(y, (q, k, v), put(drawn(2, 3, tokens, 32, seed=3)))]
    return found


def attention_masked(put: Put) -> list[Tensor]:
    """Attention with a mask of several texts in a row, and its gradients."""
    texts = torch.arange(64) // 23
    mask = put((torch.ones(64, 64, dtype=torch.bool).tril() & (texts[:, None] == texts[None, :])).expand(2, 1, 64, 64))
    q, k, v = (put(drawn(2, 3, 64, 32, seed=i)).requires_grad_() for i in range(3))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return [y, *torch.autograd.grad(y, (q, k, v), put(drawn(2, 3, 64, 32, seed=3)))]


def attention_one(put: Put) -> list[Tensor]:
    """One token attending to 1, 100 and 1,100 earlier ones, as in decoding."""
    found = []
    for past in (1, 100, 1_100):
        q, k, v = put(drawn(2, 4, 1, 32)), put(drawn(2, 4, past, 32, seed=1)), put(drawn(2, 4, past, 32, seed=2))
        with torch.no_grad():
            found.append(F.scaled_dot_product_attention(q, k, v))
    return found


def masked_softmax(put: Put) -> list[Tensor]:
    """Softmax of rows with all values but one masked, and its gradient."""
    scores = put(drawn(65, 65) * 30).requires_grad_()
    hidden = put(torch.ones(65, 65, dtype=torch.bool).triu(1))
    y = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
    return [y, *torch.autograd.grad(y, scores, put(drawn(65, 65, seed=1)))]


# --- the rest of the model ---------------------------------------------------------------------------------------------------------


def embedding_gradient(put: Put) -> list[Tensor]:
    """Rows of an embedding table, and its gradient, in which the same token occurs many times."""
    ids = torch.randint(0, 16_000, (5, 129), generator=torch.Generator().manual_seed(0))
    ids[:, ::3] = 7
    table = put(drawn(16_000, 24)).requires_grad_()
    y = F.embedding(put(ids), table)
    return [y, *torch.autograd.grad(y, table, put(drawn(5, 129, 24, seed=1)))]


def cross_entropy_large(put: Put) -> list[Tensor]:
    """Cross-entropy over 16,000 pieces, some targets ignored, and its gradient."""
    logits = put(drawn(129, 16_000) * 3).requires_grad_()
    targets = torch.randint(0, 16_000, (129,), generator=torch.Generator().manual_seed(0))
    targets[::5] = -100
    targets[1] = 15_999
    loss = F.cross_entropy(logits, put(targets), ignore_index=-100, reduction="sum")
    return [loss, *torch.autograd.grad(loss, logits)]


def rms_norm(put: Put) -> list[Tensor]:
    """Root-mean-square norm of vectors of very different length, and its gradients."""
    lengths = torch.logspace(-3, 3, 65)[:, None]
    x = put(drawn(65, 320) * lengths).requires_grad_()
    w = put(drawn(320, seed=1)).requires_grad_()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w
    to_x, to_w = torch.autograd.grad(y, (x, w), put(drawn(65, 320, seed=2)))
    return [y, to_x * put(lengths), to_w]


def rotation_and_gate(put: Put) -> list[Tensor]:
    """Rotary positions on a transposed view, SwiGLU's gate, and their gradients."""
    x = put(drawn(2, 33, 3, 32)).requires_grad_()
    angle = put(torch.outer(torch.arange(33.0), 10_000 ** -(torch.arange(0, 32, 2) / 32))).repeat(1, 2)
    q = x.transpose(1, 2)
    left, right = q.chunk(2, dim=-1)
    y = F.silu(q * angle.cos() + torch.cat((-right, left), dim=-1) * angle.sin()) * q
    return [y, *torch.autograd.grad(y, x, put(drawn(2, 3, 33, 32, seed=1)))]


def transfers(put: Put) -> list[Tensor]:
    """Tensors copied to the device: whole, sliced and transposed. Nothing may change."""
    whole, ids = drawn(33, 65), torch.tensor([0, 1, (1 << 24) + 1, (1 << 31) + 1, (1 << 53) + 1, -100])
    return [put(whole), put(whole[3:, ::2]), put(whole.mT), put(whole)[5:, 1::3].clone(), put(ids) % 1_000, put(ids) // 1_000]


def writing_in_place(put: Put) -> list[Tensor]:
    """Writing into slices and transposed views, as the key/value cache and restoring a checkpoint do."""
    cache = put(torch.zeros(2, 3, 16, 8))
    for position in range(0, 15, 5):
        cache[:, :, position : position + 5] = put(drawn(2, 3, 5, 8, seed=position))
    turned = put(torch.zeros(33, 17)).mT
    turned.copy_(put(drawn(17, 33)))
    return [cache * 2, turned + 1, turned.contiguous()]


# --- the optimizer -----------------------------------------------------------------------------------------------------------------


def optimizer_lists(put: Put) -> list[Tensor]:
    """The arithmetic of AdamW and of the running average on lists of tensors of odd sizes."""
    shapes = ((320,), (7, 33), (1_001, 5), (1,))
    weights, mean, gradients = ([put(drawn(*shape, seed=i)) for shape in shapes] for i in range(3))
    square = [put(drawn(*shape, seed=3).square()) for shape in shapes]
    torch._foreach_mul_(mean, 0.9)
    torch._foreach_add_(mean, gradients, alpha=0.1)
    torch._foreach_mul_(square, 0.95)
    torch._foreach_addcmul_(square, gradients, gradients, 0.05)
    divisor = torch._foreach_sqrt(square)
    torch._foreach_div_(divisor, 0.7)
    torch._foreach_add_(divisor, 1e-8)
    torch._foreach_addcdiv_(weights, mean, divisor, -0.01)
    return [*weights, *mean, *square]


def optimizer_views(put: Put) -> list[Tensor]:
    """The same arithmetic on transposed views, which use other kernels."""
    weight, gradient, square = put(drawn(33, 17)).mT, put(drawn(33, 17, seed=1)).mT, put(drawn(33, 17, seed=2).square()).mT
    square.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
    weight.addcdiv_(gradient, square.sqrt().add_(1e-8), value=-0.01)
    return [weight, square]


def interpolation(put: Put) -> list[Tensor]:
    """lerp_, which torch.optim's Adam uses for its moments; also on transposed views and with a large weight."""
    mean, turned, late = put(drawn(321)), put(drawn(33, 17)).mT, put(drawn(321))
    mean.lerp_(put(drawn(321, seed=1)), 0.1)
    turned.lerp_(put(drawn(17, 33, seed=1)), 0.1)
    late.lerp_(put(drawn(321, seed=1)), 0.9)
    return [mean, turned, late]


def matrices_together(put: Put) -> list[Tensor]:
    """Stacked matrices, normalised, and their norms, as in Muon and gradient clipping."""
    matrices = [put(drawn(96, 33, seed=i)) for i in range(4)]
    together = torch.stack(matrices).mT
    length = together.norm(dim=(-2, -1), keepdim=True)
    return [together / (length + 1e-7), length, *torch._foreach_norm(matrices), *(together * 2).mT.unbind()]


# --- sampling ----------------------------------------------------------------------------------------------------------------------


def ordering(put: Put) -> list[Tensor]:
    """argmax, sort, topk and cumsum over a vocabulary."""
    logits = put(drawn(3, 16_000))
    values, places = logits.sort(descending=True)
    best, at = logits.topk(50)
    return [logits.argmax(-1), places[:, :200], at, values, best, torch.softmax(logits, -1).cumsum(-1)]


@dataclass(frozen=True)
class Kernel:
    """A probe, the operation it tests, and whether training needs that on the device."""

    probe: Probe
    name: str
    operation: str
    is_needed: bool = True
    is_product: bool = False  # runs in bf16 under autocast; others stay fp32 and are not checked again
    is_exact: bool = False


KERNELS = (
    Kernel(linear_odd, "linear layer, odd sizes", "aten::linear, aten::mm", is_product=True),
    Kernel(linear_3d, "linear layer on 3-D input", "aten::linear, aten::mm", is_product=True),
    Kernel(linear_large, "linear layer, large output", "aten::linear, aten::mm", is_product=True),
    Kernel(linear_large_3d, "linear layer, large 3-D output", "aten::linear, aten::mm", is_needed=False, is_product=True),
    Kernel(long_sum, "product that sums over many tokens", "aten::mm", is_product=True),
    Kernel(longer_sum, "product that sums over 40,000 tokens", "aten::mm", is_needed=False, is_product=True),
    Kernel(batched_product, "batched product", "aten::baddbmm, aten::bmm"),
    Kernel(attention_odd, "attention, odd length", "aten::scaled_dot_product_attention", is_product=True),
    Kernel(attention_even, "attention, even length", "aten::scaled_dot_product_attention", is_product=True),
    Kernel(attention_gradients, "attention and its gradients", "aten::scaled_dot_product_attention", is_product=True),
    Kernel(attention_masked, "attention with a mask", "aten::scaled_dot_product_attention", is_product=True),
    Kernel(attention_one, "attention of one token", "aten::scaled_dot_product_attention", is_product=True),
    Kernel(masked_softmax, "softmax of masked rows", "aten::_softmax"),
    Kernel(embedding_gradient, "embedding and its gradient", "aten::embedding, aten::embedding_dense_backward"),
    Kernel(cross_entropy_large, "cross-entropy, large vocabulary", "aten::_log_softmax, aten::nll_loss"),
    Kernel(rms_norm, "norm of very different lengths", "aten::rsqrt, aten::mean"),
    Kernel(rotation_and_gate, "rotary positions and gate", "aten::cat, aten::silu"),
    Kernel(transfers, "copies to the device", "aten::_to_copy", is_exact=True),
    Kernel(writing_in_place, "writing in place", "aten::copy_"),
    Kernel(optimizer_lists, "optimizer arithmetic", "aten::_foreach_addcdiv_ and its kin"),
    Kernel(optimizer_views, "optimizer arithmetic on views", "aten::addcdiv_, aten::addcmul_"),
    Kernel(interpolation, "interpolation in place", "aten::lerp_", is_needed=False),
    Kernel(matrices_together, "stacked matrices and norms", "aten::stack, aten::linalg_vector_norm"),
    Kernel(ordering, "argmax, sort and cumsum", "aten::argmax, aten::sort, aten::topk, aten::cumsum", is_needed=False),
)
SIZED: frozenset[Probe] = frozenset({linear_large, linear_large_3d, long_sum})  # as large as a micro-batch
# allowed error as a share of the typical value: over all values, and for the worst one
ALLOWED = {"fp32": (3e-5, 1e-3), "bf16": (2e-2, 0.15)}
COARSE = 2e-3  # over all values: matmuls below fp32 (such as TF32), which train well, but are not what was requested


def check_kernels(subject: Subject, tokens: int) -> Iterator[Check]:
    """Yield one check for every probe. `tokens`: of a micro-batch in training."""
    for kernel in KERNELS:
        if subject.precision == "fp32" or kernel.is_product:
            yield check_kernel(kernel, subject, tokens)


def run(probe: Probe, put: Put, tokens: int) -> list[Tensor]:
    """Run a probe and return its results; those in SIZED get `tokens`."""
    results = probe(put, tokens) if probe in SIZED else probe(put)  # type: ignore[call-arg]
    return [tensor.detach() for tensor in results]


@cache
def reference(probe: Probe, tokens: int) -> list[Tensor]:
    """The correct results: the probe on the CPU in double precision, computed once."""
    return run(probe, lambda t: t.double() if t.is_floating_point() else t, tokens)


def check_kernel(kernel: Kernel, subject: Subject, tokens: int) -> Check:
    """Check that the device agrees with the CPU in double precision, and gives the same bytes twice."""

    def once() -> list[Tensor]:
        with subject.around(), subject.autocast():
            return [t.cpu() for t in run(kernel.probe, subject.take, tokens)]

    wanted = reference(kernel.probe, tokens)
    try:
        found, again = once(), once()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        detail = f"{kernel.operation} fails: {str(error).splitlines()[0]:.200}"
        return Check(kernel.name, False, detail, kernel.is_needed, reproduction(kernel, subject, tokens))
    problem, remark = compare(found, wanted, (0.0, 0.0) if kernel.is_exact else ALLOWED[subject.precision])
    if problem:
        where = "" if kernel.is_needed else "; training here does not use it"
        detail = f"{kernel.operation} computes wrong: {problem}{where}"
        return Check(kernel.name, False, detail, kernel.is_needed, reproduction(kernel, subject, tokens))
    if not all(torch.equal(a, b) for a, b in zip(found, again, strict=True)):
        detail = f"{kernel.operation} gives other bytes the second time: an interrupted run may differ from an uninterrupted one"
        return Check(kernel.name, False, detail, condemns=False)
    return Check(kernel.name, True, remark)


def compare(found: list[Tensor], wanted: list[Tensor], allowed: tuple[float, float]) -> tuple[str, str]:
    """The fault of `found`, empty for none, and a remark on the error."""
    worst = 0.0
    for number, (a, b) in enumerate(zip(found, wanted, strict=True), 1):
        which = f" in result {number} of {len(wanted)}" if len(wanted) > 1 else ""
        if a.shape != b.shape:
            return f"shape {tuple(a.shape)} where {tuple(b.shape)} is right{which}", ""
        if not b.is_floating_point():
            wrong = int((a != b).sum())
            if wrong:
                return f"{wrong:,} of {b.numel():,} whole numbers differ{which}", ""
            continue
        bad = int((~torch.isfinite(a)).sum())
        if bad:
            return f"{bad:,} of {b.numel():,} values are not finite{which}", ""
        error, size = a.double() - b, float(b.square().mean().sqrt()) or 1.0
        rms, most = float(error.square().mean().sqrt()) / size, float(error.abs().max()) / size
        off = int((error.abs() > allowed[1] * size).sum())
        is_coarse = allowed == ALLOWED["fp32"] and rms <= COARSE and most <= 10 * COARSE
        if (rms > allowed[0] or most > allowed[1]) and not is_coarse:
            return f"the error is {rms:.2g} of the values' size ({allowed[0]:.0e} allowed), {off:,} of {b.numel():,} are far off{which}", ""
        worst = max(worst, rms)
    coarse = "; less exact than fp32" if allowed == ALLOWED["fp32"] and worst > allowed[0] else ""
    return "", f"largest error {worst:.1g} of the values' size{coarse}"


def reproduction(kernel: Kernel, subject: Subject, tokens: int) -> str:
    """A one-page script that shows the fault without this program."""
    size = f", {tokens}" if kernel.probe in SIZED else ""
    put = f'lambda t: t.to("{subject.device}")'
    cast = f'torch.autocast("{subject.device}", torch.bfloat16)' if subject.precision == "bf16" else "contextlib.nullcontext()"
    own = "\n\n".join(textwrap.dedent(inspect.getsource(f)) for f in (drawn, kernel.probe))
    return f"""\
from __future__ import annotations

import contextlib

import torch
from torch.nn import functional as F

{own}
right = {kernel.probe.__name__}(lambda t: t.double() if t.is_floating_point() else t{size})
with {cast}:
    found = {kernel.probe.__name__}({put}{size})
for number, (a, b) in enumerate(zip(found, right), 1):
    error = (a.detach().cpu().double() - b.double()).abs()
    print(f"result {{number}}: largest error {{float(error.max()):.3g}}, typical value {{float(b.double().square().mean().sqrt()):.3g}}")
"""
