"""Many linear classifiers on the same features, trained side by side: one product for all, one update for all.

Every parameter has a leading axis of M models, and each model its own learning rate, weight decay and kind of update.
The loss is the sum of the models' losses, so the gradient of each is what it would be alone, and a model that diverges
harms no other. (45 classifiers cost about as much as two that are trained one after the other.)
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

HeadKind = Literal["plain", "batch-norm", "layer-norm", "unit-layer-norm"]
OptimizerKind = Literal["sgd", "lars", "nesterov", "adamw"]

BATCH_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5
LARS_TRUST = 1e-3
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
EVALUATION_CHUNK = 2**24
"""Logits that are held at once where models are measured."""


class Candidate(NamedTuple):
    """How one of the models is trained; `lr` is before any scaling by the batch."""

    lr: float
    weight_decay: float = 0.0
    optimizer: OptimizerKind = "sgd"


class LinearHeads(nn.Module):
    """M linear classifiers.

    `plain`: W x + b. `batch-norm`: x is first normalised over the batch, without weights of its own (MAE).
    `layer-norm`: x is layer-normed first, with weights of its own for each model; `unit-layer-norm`: and then scaled to
    length 1 (MSN).

    Args:
        num_models: M; all begin with the same weights.
        width: D of the features.
        weight_std: of the normal distribution of the first weights, biases being 0; None = torch's own start of a
            linear layer.
        generator: draws them.
    """

    def __init__(
        self,
        num_models: int,
        width: int,
        num_classes: int,
        *,
        kind: HeadKind = "plain",
        weight_std: float | None = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        weight, bias = torch.zeros(num_classes, width), torch.zeros(num_classes)
        if weight_std is None:
            bound = 1 / math.sqrt(width)
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        else:
            weight.normal_(0.0, weight_std, generator=generator)
        self.weight = nn.Parameter(weight.repeat(num_models, 1, 1))  # [M, C, D]
        self.bias = nn.Parameter(bias.repeat(num_models, 1))  # [M, C]
        self.norm = nn.BatchNorm1d(width, eps=BATCH_NORM_EPS, affine=False) if kind == "batch-norm" else None
        if kind.endswith("layer-norm"):
            self.scale = nn.Parameter(torch.ones(num_models, width))
            self.shift = nn.Parameter(torch.zeros(num_models, width))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "M C B"]:
        """Logits of all models. Rows come last: a softmax over few classes is 5 times faster across than along."""
        M, C, D = self.weight.shape
        if self.kind.endswith("layer-norm"):
            normed = F.layer_norm(features, (D,), eps=LAYER_NORM_EPS)
            own = torch.addcmul(self.shift[:, None], normed, self.scale[:, None])  # [M, B, D]
            own = F.normalize(own, dim=2) if self.kind == "unit-layer-norm" else own
            return torch.baddbmm(self.bias[..., None], self.weight, own.transpose(1, 2))
        if self.norm is not None:
            features = self.norm(features)
        return torch.addmm(self.bias.view(-1, 1), self.weight.view(M * C, D), features.T).view(M, C, -1)

    def backward(
        self,
        features: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"] | Float[Tensor, "B C"],
        row_weights: Float[Tensor, "M B"] | None = None,
    ) -> Float[Tensor, " M"]:
        """Each model's mean cross-entropy, whose gradient is added to the parameters.

        Args:
            labels: classes, or shares of the classes that sum to 1.
            row_weights: how much a row counts for a model; None = all the same. A model without any row has loss 0.
        """
        logits = self(features)
        M, _, B = logits.shape
        log_probs = logits.detach().log_softmax(dim=1)
        if labels.ndim == 1:
            place = labels.expand(M, 1, B)
            each = -log_probs.gather(1, place)[:, 0]  # [M, B]
            slope = log_probs.exp_().scatter_add_(1, place, log_probs.new_full((1, 1, 1), -1.0).expand(M, 1, B))
        else:
            each = -(log_probs * labels.T).sum(dim=1)
            slope = log_probs.exp_() - labels.T
        share = torch.full_like(each, 1 / B)
        if row_weights is not None:
            share = row_weights / row_weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        logits.backward(slope.mul_(share[:, None]))
        # `where`, because 0 * inf of a row that doesn't count would be nan.
        return torch.where(share > 0, each * share, 0.0).sum(dim=1)


class Optimizer:
    """One update rule over stacked parameters, each model with its own rate, decay and kind.

    With g the gradient, w the weights, m the momentum:

    * sgd: g += decay * w; v = m v + g; w -= lr v
    * lars: weights alone decay, and their g is scaled by trust * |w| / |g|; then as sgd
    * nesterov: decay of the weights alone; g = -lr (g + decay * w); v = m v + g; w += g + m v. The rate is inside the
      velocity, which differs from torch's SGD whenever it changes.
    * adamw: decoupled decay of everything

    Source: iBOT, arXiv 2111.07832 (sgd and lars); MAE, arXiv 2111.06377 (lars); MSN, arXiv 2204.07141 (nesterov).
    """

    def __init__(
        self,
        heads: LinearHeads,
        candidates: Sequence[Candidate],
        *,
        momentum: float = 0.9,
        trust: float = LARS_TRUST,
        clip_norm: float | None = None,
    ) -> None:
        """`clip_norm` is the largest norm of a model's whole gradient; None leaves it as it is."""
        device = heads.weight.device
        self.parameters = list(heads.parameters())
        self.momentum, self.trust, self.clip_norm = momentum, trust, clip_norm
        self.any_decay = any(each.weight_decay for each in candidates)
        self.decay = torch.tensor([each.weight_decay for each in candidates], device=device)
        self.kind = candidates[0].optimizer
        self.any_adaptive = any(each.optimizer == "lars" for each in candidates)
        self.adaptive = torch.tensor([each.optimizer == "lars" for each in candidates], device=device)
        kinds = {each.optimizer for each in candidates}
        assert len(kinds) == 1 or kinds <= {"sgd", "lars"}, "the configuration lets no other mixture pass"
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters] if self.kind == "adamw" else []
        self.steps = 0

    @torch.no_grad()
    def step(self, rates: Float[Tensor, " M"]) -> None:
        """Update all models by the gradients that are there, and drop these."""
        gradients = [parameter.grad for parameter in self.parameters]
        found = [gradient for gradient in gradients if gradient is not None]
        if self.clip_norm is not None:
            squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in found])
            factor = (self.clip_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
            for gradient in found:
                gradient.mul_(_along(factor, gradient))
        self.steps += 1
        for number, (parameter, gradient) in enumerate(zip(self.parameters, found, strict=True)):
            lr, decay = _along(rates, parameter), _along(self.decay, parameter)
            if self.kind == "adamw":
                self._adamw(number, parameter, gradient, lr, decay)
            elif self.kind == "nesterov":
                self._nesterov(number, parameter, gradient, lr, decay)
            else:
                self._momentum(number, parameter, gradient, lr, decay)
            parameter.grad = None

    def _momentum(self, number: int, parameter: Tensor, gradient: Tensor, lr: Tensor, decay: Tensor) -> None:
        adaptive = _along(self.adaptive, parameter)
        is_weight = parameter.ndim > 2
        if self.any_decay:
            gradient = torch.addcmul(gradient, parameter, decay if is_weight else decay * ~adaptive)
        if is_weight and self.any_adaptive:
            weight_norm = _along(parameter.flatten(1).norm(dim=1), parameter)
            update_norm = _along(gradient.flatten(1).norm(dim=1), parameter)
            scaled = adaptive & (weight_norm > 0) & (update_norm > 0)
            gradient = gradient * torch.where(scaled, self.trust * weight_norm / update_norm, 1.0)
        velocity = self.first[number]
        velocity.mul_(self.momentum).add_(gradient)
        parameter.addcmul_(velocity, -lr)

    def _nesterov(self, number: int, parameter: Tensor, gradient: Tensor, lr: Tensor, decay: Tensor) -> None:
        if parameter.ndim > 2:
            gradient = torch.addcmul(gradient, parameter, decay)
        move = gradient * -lr
        velocity = self.first[number]
        velocity.mul_(self.momentum).add_(move)
        parameter.add_(move).add_(velocity, alpha=self.momentum)

    def _adamw(self, number: int, parameter: Tensor, gradient: Tensor, lr: Tensor, decay: Tensor) -> None:
        first, second = self.first[number], self.second[number]
        parameter.mul_(1 - lr * decay)
        first.lerp_(gradient, 1 - ADAM_BETAS[0])
        second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
        corrected = (second / (1 - ADAM_BETAS[1] ** self.steps)).sqrt().add_(ADAM_EPS)
        parameter.sub_(lr / (1 - ADAM_BETAS[0] ** self.steps) * first / corrected)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """One value for each model, shaped so that it spreads over a stacked parameter."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def ranks(logits: Float[Tensor, "M C B"], labels: Int[Tensor, " B"]) -> Int[Tensor, "M B"]:
    """How many classes stand before the true one, for each model; of equal logits the lower class stands first.

    A model that diverged has no numbers to compare: its true class counts as the last one.
    """
    M, C, _ = logits.shape
    own = logits.gather(1, labels.expand(M, 1, -1))  # [M, 1, B]
    classes = torch.arange(C, device=logits.device)[:, None]
    behind = (logits < own) | ((logits == own) & (classes > labels))
    return C - 1 - behind.sum(dim=1)


class Measured(NamedTuple):
    """All models on some labelled features.

    Attributes:
        rank: int64 [M, n], see `ranks`.
        predictions: int64 [M, n].
    """

    rank: Int[Tensor, "M n"]
    predictions: Int[Tensor, "M n"]

    def top(self, n: int) -> Float[Tensor, " M"]:
        """Share of the rows whose true class is among the first `n`, in percent."""
        return 100 * (self.rank < n).double().mean(dim=1)


@torch.inference_mode()
def measure(heads: LinearHeads, features: Float[Tensor, "n D"], labels: Int[Tensor, " n"]) -> Measured:
    """Ranks and predictions of all models in evaluation mode; the result is on the CPU."""
    was_training = heads.training
    heads.eval()
    M, C, _ = heads.weight.shape
    device = heads.weight.device
    found = []
    chunk = max(1, EVALUATION_CHUNK // (M * C))
    for start in range(0, len(features), chunk):
        logits = heads(features[start : start + chunk].to(device))
        rank = ranks(logits, labels[start : start + chunk].to(device))
        found.append((rank.cpu(), logits.nan_to_num(-torch.inf).argmax(dim=1).cpu()))
    heads.train(was_training)
    return Measured(torch.cat([each[0] for each in found], dim=1), torch.cat([each[1] for each in found], dim=1))
