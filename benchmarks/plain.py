"""iBOT and MSN written plainly, with timm's ViT and torch, at the cost of the originals' code of 2021 and 2022.

No package offers these two as a whole, so the peers are written here. A step does the originals' work in the
originals' way, all of it in float32:

    both    attention written out: the softmaxed weights exist as a tensor and are returned by every block
            teacher with all blocks, its last one too, for all tokens; final norm on all tokens
            positions of small crops interpolated anew in each forward pass
            AdamW as torch builds it; the average of the teacher in a Python loop over the parameters
    iBOT    two passes of the student: global crops with mask tokens, then local crops; drop path 0.1
            the head on all tokens of student and teacher; patch logits of local crops are thrown away
            softmax and log-softmax of all patches, in a double loop over pairs of crops; the mask comes last
            clipping in a Python loop over the parameters, each norm fetched to the host
    MSN     all patches projected, 15 % of the random view's dropped afterwards
            label smoothing as a matrix product with the labels of the prototypes, here the identity
            softmax, power and logarithm one after the other, twice; targets repeated for each view
            gradient norms of the weights and the diagnostics fetched to the host

`plain_hog_targets` is LocalMIM's target in the same manner: for each scale and colour anew, with a map of all bins at
full resolution.

Left out, in favour of these: writing logs, averaging over processes, normalising the pixels (the originals' loaders
do that; ours does it within the step).

Sources: arXiv 2111.07832, 2204.07141 and 2303.05251 and their public code.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from benchmarks.cases import Case, Contestant
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.ops.pixels import normalise

LARGE, SMALL, PATCH = 224, 96, 16
"""Sides of a large view, a small view and a patch, in pixels."""

NUM_LARGE, NUM_SMALL = 2, 10
"""Views of each image."""

CLIP_NORM = 3.0


class Sizes(NamedTuple):
    """Sizes of network and head; the defaults are those of the papers' ViT-S/16.

    Attributes:
        image_size: side of the large views in pixels.
        patch_size: side of a patch in pixels.
        embed_dim, depth, num_heads: of the ViT.
        hidden_dim, bottleneck_dim: widths of the head's MLP and of its output.
        num_outputs: outputs of iBOT's last layer, or MSN's prototypes.
    """

    image_size: int = LARGE
    patch_size: int = PATCH
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_outputs: int = 8192


class PlainViT(nn.Module):
    """timm's ViT with the originals' forward pass over its parts.

    Args:
        sizes: of the network.
        drop_path: stochastic depth rate of the last block.
        offset: what is added to the new grid's side before it is divided by the old one's (DINO and iBOT: 0.1).
    """

    def __init__(self, sizes: Sizes, drop_path: float = 0.0, offset: float = 0.0) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            "vit_small_patch16_224",
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            num_classes=0,
            drop_path_rate=drop_path,
        )
        self.offset = offset

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Normed tokens [B, 1 + n, D], the class token first.

        Args:
            images: float32 [B, 3, S, S], normalised.
            mask: bool [B, N], True = replaced by `mask_token`.
            kept: int64 [n], the patches that stay, the same ones in all images.
        """
        tokens = self.trunk.patch_embed.proj(images).flatten(2).transpose(1, 2)
        if mask is not None and mask_token is not None:
            tokens[mask] = mask_token.reshape(-1)
        tokens = torch.cat([self.trunk.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(tokens.shape[1] - 1)
        if kept is not None:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:][:, kept]], dim=1)
        for block in self.trunk.blocks:
            attended, _ = attend(block.attn, block.norm1(tokens))
            tokens = tokens + block.drop_path1(attended)
            tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
        normed: Tensor = self.trunk.norm(tokens)
        return normed

    def positions(self, num_patches: int) -> Tensor:
        """Position embeddings [1, 1 + N, D] for a square of this many patches."""
        table: Tensor = self.trunk.pos_embed
        if num_patches == table.shape[1] - 1:
            return table
        side, old = math.isqrt(num_patches), math.isqrt(table.shape[1] - 1)
        picture = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        scale = (side + self.offset) / old
        resized = F.interpolate(picture, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def attend(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, T, D] and weights [B, heads, T, T] of self-attention, product by product."""
    B, T, D = tokens.shape
    qkv = attention.qkv(tokens).reshape(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    weights = ((query @ key.transpose(-2, -1)) * attention.scale).softmax(dim=-1)
    out = (weights @ value).transpose(1, 2).reshape(B, T, D)
    return attention.proj(out), weights


class WeightNormed(nn.Module):
    """A linear layer without bias whose rows are g v / |v|."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [..., outputs]."""
        return F.linear(tokens, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class IBOTHead(nn.Module):
    """One MLP and one last layer for class and patch tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(sizes.embed_dim, sizes.hidden_dim),
            nn.GELU(),
            nn.Linear(sizes.hidden_dim, sizes.hidden_dim),
            nn.GELU(),
            nn.Linear(sizes.hidden_dim, sizes.bottleneck_dim),
        )
        self.last_layer = WeightNormed(sizes.bottleneck_dim, sizes.num_outputs)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class tokens [B, K] and of all patches [B, N, K]."""
        bottleneck = F.normalize(self.mlp(tokens), dim=-1)
        return self.last_layer(bottleneck[:, 0]), self.last_layer(bottleneck[:, 1:])


class PlainIBOT(nn.Module):
    """iBOT with a shared head."""

    STUDENT_TEMPERATURE = 0.1
    CENTER_MOMENTUM = 0.9

    def __init__(self, sizes: Sizes, drop_path: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.teacher = PlainViT(sizes, drop_path, offset=0.1), PlainViT(sizes, offset=0.1)
        self.head, self.teacher_head = IBOTHead(sizes), IBOTHead(sizes)
        self.mask_token = nn.Parameter(torch.zeros(1, sizes.embed_dim))
        self.register_buffer("center", torch.zeros(1, sizes.num_outputs))
        self.register_buffer("center2", torch.zeros(1, 1, sizes.num_outputs))
        start_teacher(self)

    def forward(
        self,
        global_crops: Sequence[Tensor],
        local_crops: Sequence[Tensor],
        mask: Tensor,
        temperatures: tuple[float, float],
    ) -> Tensor:
        """The loss.

        Args:
            global_crops, local_crops: float32 [B, 3, S, S] each, normalised.
            mask: bool [G * B, N], all images of the first global crop, then those of the second.
            temperatures: of the teacher's class tokens and of its patches.
        """
        pictures = torch.cat(list(global_crops))
        teacher_class, teacher_patches = self.teacher_head(self.teacher(pictures))
        student_class, student_patches = self.head(self.encoder(pictures, mask=mask, mask_token=self.mask_token))
        local_class, _ = self.head(self.encoder(torch.cat(list(local_crops))))
        G, V = len(global_crops), len(global_crops) + len(local_crops)

        student_views = (torch.cat([student_class, local_class]) / self.STUDENT_TEMPERATURE).chunk(V)
        student_crops = (student_patches / self.STUDENT_TEMPERATURE).chunk(G)
        teacher_views = ((teacher_class - self.center) / temperatures[0]).softmax(dim=-1).detach().chunk(G)
        teacher_crops = ((teacher_patches - self.center2) / temperatures[1]).softmax(dim=-1).detach().chunk(G)
        masks = mask.chunk(G)
        class_loss, patch_loss = torch.zeros(()), torch.zeros(())
        for q in range(G):
            for v in range(V):
                if v == q:
                    errors = -(teacher_crops[q] * student_crops[v].log_softmax(dim=-1)).sum(dim=-1)
                    hidden = masks[q].float()
                    patch_loss = patch_loss + ((errors * hidden).sum(dim=-1) / hidden.sum(dim=-1).clamp(min=1)).mean()
                else:
                    class_loss = class_loss - (teacher_views[q] * student_views[v].log_softmax(dim=-1)).sum(-1).mean()
        self.move_centers(teacher_class, teacher_patches)
        return class_loss / (G * (V - 1)) + patch_loss / G

    @torch.no_grad()
    def move_centers(self, teacher_class: Tensor, teacher_patches: Tensor) -> None:
        """Running means of the teacher's raw logits, of patches over all of them."""
        keep = self.CENTER_MOMENTUM
        self.center = self.center * keep + teacher_class.mean(dim=0, keepdim=True) * (1 - keep)
        self.center2 = self.center2 * keep + teacher_patches.mean(dim=1).mean(dim=0)[None, None] * (1 - keep)


class MSNHead(nn.Module):
    """Three linear layers with batch norm after the first two."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.embed_dim, sizes.hidden_dim)
        self.bn1 = nn.BatchNorm1d(sizes.hidden_dim)
        self.fc2 = nn.Linear(sizes.hidden_dim, sizes.hidden_dim)
        self.bn2 = nn.BatchNorm1d(sizes.hidden_dim)
        self.fc3 = nn.Linear(sizes.hidden_dim, sizes.bottleneck_dim)

    def forward(self, class_tokens: Tensor) -> Tensor:
        """Representations [B, d]."""
        hidden = F.gelu(self.bn1(self.fc1(class_tokens)))
        representations: Tensor = self.fc3(F.gelu(self.bn2(self.fc2(hidden))))
        return representations


class PlainMSN(nn.Module):
    """MSN with balanced targets."""

    TEMPERATURE = 0.1
    SINKHORN_ROUNDS = 3

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder, self.teacher = PlainViT(sizes), PlainViT(sizes)
        self.head, self.teacher_head = MSNHead(sizes), MSNHead(sizes)
        edge = sizes.bottleneck_dim**-0.5
        self.prototypes = nn.Parameter(torch.empty(sizes.num_outputs, sizes.bottleneck_dim).uniform_(-edge, edge))
        self.register_buffer("labels", torch.eye(sizes.num_outputs), persistent=False)
        start_teacher(self)

    def forward(self, views: Sequence[Tensor], kept: Tensor, sharpening: float = 0.25) -> Tensor:
        """The loss.

        Args:
            views: float32 [B, 3, S, S] each, normalised: the target view, then the anchors.
            kept: int64 [n], patches of the first anchors that stay.
            sharpening: exponent 1 / T of the targets is 1 / this.
        """
        anchors = []
        for number, (_, group) in enumerate(groupby(views[1:], key=lambda view: view.shape[-1])):
            tokens = self.encoder(torch.cat(list(group)), kept=kept if number == 0 else None)
            anchors.append(self.head(tokens[:, 0]))
        with torch.no_grad():
            target = self.teacher_head(self.teacher(views[0])[:, 0])
            targets = self.assign(target)
            targets = targets ** (1 / sharpening)
            targets = self.balance(targets / targets.sum(dim=1, keepdim=True))
            targets = torch.cat([targets] * (len(views) - 1))
        probabilities = self.assign(torch.cat(anchors))
        cross_entropy = torch.log(probabilities ** (-targets)).sum(dim=1).mean()
        entropy = torch.log(probabilities ** (-probabilities)).sum(dim=1).mean()
        mean = probabilities.mean(dim=0)
        use_all = math.log(len(mean)) - torch.log(mean ** (-mean)).sum()
        self.diagnose(targets, [cross_entropy, use_all, entropy])
        return cross_entropy + use_all + 0.0 * entropy

    def assign(self, representations: Tensor) -> Tensor:
        """Probabilities of the prototypes [B, K]."""
        similarity = F.normalize(representations) @ F.normalize(self.prototypes).T
        return (similarity / self.TEMPERATURE).softmax(dim=-1) @ self.labels

    def balance(self, targets: Tensor) -> Tensor:
        """Sinkhorn: all prototypes get the same share, each sample sums to 1."""
        shares = targets.T / targets.sum()
        K, B = shares.shape
        for _ in range(self.SINKHORN_ROUNDS):
            shares = shares / shares.sum(dim=1, keepdim=True) / K
            shares = shares / shares.sum(dim=0, keepdim=True) / B
        return (shares * B).T

    def diagnose(self, targets: Tensor, terms: Sequence[Tensor]) -> list[float]:
        """What the original fetches for its log in each step."""
        used = len(set(targets.argmax(dim=1).tolist()))
        extremes = [targets.max(dim=1).values.mean().item(), targets.min(dim=1).values.mean().item()]
        return [used, *extremes, *(term.item() for term in terms)]


def start_teacher(method: PlainIBOT | PlainMSN) -> None:
    """The teacher begins as a copy of the student, and gets no gradient."""
    for student, teacher in ((method.encoder, method.teacher), (method.head, method.teacher_head)):
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)


def pairs(method: PlainIBOT | PlainMSN) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Parameters of teacher and student that belong together."""
    for student, teacher in ((method.encoder, method.teacher), (method.head, method.teacher_head)):
        yield from zip(teacher.parameters(), student.parameters(), strict=True)


@torch.no_grad()
def follow(method: PlainIBOT | PlainMSN, momentum: float) -> None:
    """The teacher's moving average, one parameter after the other."""
    for teacher, student in pairs(method):
        teacher.mul_(momentum).add_((1 - momentum) * student)


@torch.no_grad()
def clip_one_by_one(parameters: Sequence[nn.Parameter], max_norm: float) -> list[float]:
    """iBOT's clipping: each gradient by its own norm, which goes to the host."""
    norms = []
    for parameter in parameters:
        if parameter.grad is not None:
            norm = parameter.grad.norm(2)
            norms.append(norm.item())
            factor = max_norm / (norm + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
    return norms


def weight_norms(parameters: Sequence[nn.Parameter]) -> list[float]:
    """What MSN's original fetches for its log in each step: gradient norms of all weights with two axes or more."""
    return [
        float(parameter.grad.norm()) for parameter in parameters if parameter.ndim > 1 and parameter.grad is not None
    ]


@torch.no_grad()
def plain_hog_targets(
    images: Tensor, bins: int, pools: Sequence[int], biases: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Histograms of oriented gradients of each scale: float32 [B, cells, 3 * bins] each.

    Args:
        images: float32 [B, 3, H, W], normalised.
        bins: orientations.
        pools: sides of the cells in pixels, one for each scale.
        biases: [2] for each scale, added to the gradients.
    """
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=images.device)
    weight = torch.stack([sobel, sobel.T])[:, None]
    targets = []
    for scale, pool in enumerate(pools):
        colours = []
        for colour in images.split(1, dim=1):
            padded = F.pad(colour, (1, 1, 1, 1), mode="reflect")
            gradients = F.conv2d(padded, weight, None if biases is None else biases[scale])
            lengths = gradients.norm(dim=1, keepdim=True)
            phase = torch.atan2(gradients[:, :1], gradients[:, 1:])
            places = (phase / math.pi * bins).floor().long() % bins
            histogram = torch.zeros(len(images), bins, *images.shape[2:], device=images.device)
            histogram.scatter_add_(1, places, lengths)
            colours.append(F.normalize(F.avg_pool2d(histogram, pool), dim=1))
        targets.append(torch.cat(colours, dim=1).flatten(2).transpose(1, 2))
    return targets


def plain_optimizer(method: nn.Module) -> torch.optim.AdamW:
    """torch's AdamW as it comes, with decay for all but vectors and biases."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.04},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-4)


def random_views(batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The large and the small views, normalised."""

    def view(side: int) -> Tensor:
        pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
        return normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)

    return [view(LARGE) for _ in range(NUM_LARGE)], [view(SMALL) for _ in range(NUM_SMALL)]


def build_ibot(case: Case) -> Contestant:
    """iBOT ViT-S/16, ready to take steps."""
    method = PlainIBOT(Sizes()).train()
    optimizer = plain_optimizer(method)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    global_crops, local_crops = random_views(case.batch_size)
    num_patches = (LARGE // PATCH) ** 2
    # Half of the crops are whole, the others lack 30 %; a step takes as long with any mask.
    shares = torch.tensor([0.0, 0.3]).repeat(NUM_LARGE * case.batch_size // 2)[:, None]

    def forward() -> Tensor:
        mask = torch.rand(NUM_LARGE * case.batch_size, num_patches) < shares
        loss: Tensor = method(global_crops, local_crops, mask, (0.04, 0.04))
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")
        return loss

    def update() -> None:
        clip_one_by_one(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        follow(method, 0.996)

    return Contestant(forward, lambda loss: loss.backward(), update, sum(parameter.numel() for parameter in trained))


def build_msn(case: Case) -> Contestant:
    """MSN ViT-S/16, ready to take steps."""
    method = PlainMSN(Sizes(num_outputs=1024)).train()
    optimizer = plain_optimizer(method)
    clipped = [*method.encoder.parameters(), *method.head.parameters()]
    large, small = random_views(case.batch_size)
    num_patches = (LARGE // PATCH) ** 2
    num_kept = int(num_patches * (1 - 0.15))

    def forward() -> Tensor:
        loss: Tensor = method([*large, *small], torch.randperm(num_patches)[:num_kept])
        return loss

    def update() -> None:
        nn.utils.clip_grad_norm_(clipped, CLIP_NORM)
        optimizer.step()
        weight_norms(clipped)
        optimizer.zero_grad()
        follow(method, 0.996)

    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    return Contestant(forward, lambda loss: loss.backward(), update, trained)


def build_plain(case: Case) -> Contestant:
    """The plain peer of a case."""
    torch.manual_seed(0)
    return {"ibot": build_ibot, "msn": build_msn}[case.method](case)
