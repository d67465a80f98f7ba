"""The numpy forward pass against a reference written from the definition: float64, whole context, no cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from peft_maker import Recipe, make
from safetensors.numpy import load_file, save_file

from loadtest.server.base import ensure_base
from loadtest.server.cache import Cache, alike
from loadtest.server.lora import Version, read_version
from loadtest.server.transformer import forward, logits, product, silu
from loadtest.server.weights import load_model, read_tensors

RNG = np.random.default_rng(7)
PROMPTS = [RNG.integers(0, 2000, n).tolist() for n in (5, 17, 40)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def llama(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings and no biases, in float16, with head_dim left to be inferred."""
    out = tmp_path_factory.mktemp("llama")
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "rope_theta": 100000.0}
    del config["head_dim"]
    (out / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    kept = {k: v.astype(np.float16) for k, v in tensors.items() if "bias" not in k and k != "lm_head.weight"}
    save_file(kept, out / "model.safetensors")
    return out


class Reference:
    """Hugging Face's definition of the architecture in float64, without cache, batch or stacked weights."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.c = json.loads((folder / "config.json").read_text())
        self.w = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
        if adapter is not None:
            peft = json.loads((adapter / "adapter_config.json").read_text())
            scale = peft["lora_alpha"] / (peft["r"] ** 0.5 if peft["use_rslora"] else peft["r"])
            lora = {k: v.astype(np.float64) for k, v in load_file(adapter / "adapter_model.safetensors").items()}
            for name in [k for k in lora if "lora_A" in k]:
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                self.w[target] = self.w[target] + scale * lora[name.replace("lora_A", "lora_B")] @ lora[name]

    def logits(self, ids: list[int]) -> np.ndarray:
        """[len(ids), vocab]."""
        c, x = self.c, self.w["model.embed_tokens.weight"][ids]
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}"
            x = x + self.attention(f"{at}.self_attn", self.norm(x, f"{at}.input_layernorm"))
            h = self.norm(x, f"{at}.post_attention_layernorm")
            gate, up = self.linear(f"{at}.mlp.gate_proj", h), self.linear(f"{at}.mlp.up_proj", h)
            x = x + self.linear(f"{at}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
        return self.linear(head, self.norm(x, "model.norm"))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[f"{name}.weight"]

    def attention(self, at: str, x: np.ndarray) -> np.ndarray:
        heads, kv = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        d = self.c["hidden_size"] // heads if "head_dim" not in self.c else self.c["head_dim"]
        q, k, v = (self.linear(f"{at}.{p}_proj", x).reshape(len(x), -1, d) for p in "qkv")
        angle = np.arange(len(x))[:, None] / self.c["rope_theta"] ** (np.arange(0, d, 2) / d)
        cos, sin = (np.tile(f(angle), 2)[:, None, :] for f in (np.cos, np.sin))
        q, k = (z * cos + np.concatenate([-z[..., d // 2 :], z[..., : d // 2]], -1) * sin for z in (q, k))
        out = np.empty_like(q)
        for h in range(heads):
            scores = q[:, h] @ k[:, h * kv // heads].T / np.sqrt(d)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, h] = p / p.sum(-1, keepdims=True) @ v[:, h * kv // heads]
        return self.linear(f"{at}.o_proj", out.reshape(len(x), -1))


Texts = list[list[int]]


def run(folder: Path, prompts: Texts, version: Version | None, steps: int) -> tuple[Texts, np.ndarray]:
    """Greedy ids per prompt, all prompts in one batch; and the logits of the last step [B, vocab]."""
    model = load_model(folder)
    cache = Cache(model.config, slots=1, positions=4)
    cache.reserve(len(prompts), max(map(len, prompts)) + steps)
    groups = [] if version is None else [(version, np.arange(sum(map(len, prompts))))]
    flat, positions = np.concatenate(prompts), np.concatenate([np.arange(len(p)) for p in prompts])
    spans = [(i, 0, len(p)) for i, p in enumerate(prompts)]
    hidden = forward(model, flat, positions, groups, cache.prefill(spans))
    rows = logits(model, hidden[np.cumsum([len(p) for p in prompts]) - 1])
    out = [rows.argmax(1)]
    where, slots = np.array([len(p) for p in prompts]), np.arange(len(prompts))
    groups = [] if version is None else [(version, slots)]
    for _ in range(steps - 1):
        rows = logits(model, forward(model, out[-1], where, groups, cache.decode(slots, where)))
        out.append(rows.argmax(1))
        where = where + 1
    return np.stack(out, 1).tolist(), rows


def check(folder: Path, adapter: Path | None) -> None:
    reference = Reference(folder, adapter)
    version = read_version(str(adapter), load_model(folder).config, 64) if adapter else None
    ids, last = run(folder, PROMPTS, version, 12)
    for prompt, got, row in zip(PROMPTS, ids, last, strict=True):
        wanted = reference.logits([*prompt, *got[:-1]])
        assert got == wanted[len(prompt) - 1 :].argmax(1).tolist()
        np.testing.assert_allclose(row, wanted[-1], rtol=0, atol=2e-4)


def test_base_equals_the_reference(base: Path) -> None:
    check(base, None)


def test_llama_with_tied_embeddings_equals_the_reference(llama: Path) -> None:
    check(llama, None)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(rank=4),
        Recipe(rank=8, alpha=8.0, targets=("q_proj", "v_proj")),
        Recipe(rank=16, rslora=True),
        Recipe(rank=8, targets=("k_proj", "up_proj", "down_proj"), dtype="float16"),
    ],
    ids=["all-4", "qv-8", "rslora-16", "k-up-down-f16"],
)
def test_adapters_equal_the_reference_with_merged_weights(base: Path, tmp_path: Path, recipe: Recipe) -> None:
    check(base, make(base, tmp_path / "a", 3, recipe))


def test_an_adapter_on_a_llama_equals_the_reference(llama: Path, tmp_path: Path) -> None:
    check(llama, make(llama, tmp_path / "a", 4, Recipe(rank=8)))


def test_adapters_visibly_change_the_text(base: Path, tmp_path: Path) -> None:
    config = load_model(base).config
    texts = [run(base, PROMPTS, None, 8)[0]]
    for seed in range(2):
        folder = make(base, tmp_path / str(seed), seed)
        texts.append(run(base, PROMPTS, read_version(str(folder), config, 64), 8)[0])
    assert all(a[i] != b[i] for a in texts for b in texts if a is not b for i in range(len(PROMPTS)))


def test_a_batch_gives_each_stream_what_it_gets_alone(base: Path) -> None:
    together, _ = run(base, PROMPTS, None, 20)
    assert together == [run(base, [p], None, 20)[0][0] for p in PROMPTS]


def test_a_decode_step_over_some_slots_leaves_the_others_alone(base: Path) -> None:
    """What a pause of bystanders needs: slots 0 and 2 advance, slot 1 goes on later as if nothing had happened."""
    model = load_model(base)
    cache = Cache(model.config, slots=4, positions=64)
    lengths = np.array([len(p) for p in PROMPTS])
    flat, positions = np.concatenate(PROMPTS), np.concatenate([np.arange(n) for n in lengths])
    hidden = forward(model, flat, positions, [], cache.prefill([(i, 0, n) for i, n in enumerate(lengths)]))
    first = logits(model, hidden[np.cumsum(lengths) - 1]).argmax(1)
    some, rest = np.array([0, 2]), np.array([1])
    second = np.empty(3, dtype=np.int64)
    for slots in (some, rest):
        h = forward(model, first[slots], lengths[slots], [], cache.decode(slots, lengths[slots]))
        second[slots] = logits(model, h).argmax(1)
    assert [[a, b] for a, b in zip(first.tolist(), second.tolist(), strict=True)] == run(base, PROMPTS, None, 2)[0]


def test_neighbours_attend_together_unless_padding_costs_more() -> None:
    assert alike(np.full(40, 7)) == [(0, 40, 7)]
    falling = np.arange(64, 0, -1) * 10
    assert alike(falling) == [(0, 16, 640), (16, 32, 480), (32, 48, 320), (48, 64, 160)]
    assert alike(np.r_[np.full(16, 100), np.full(8, 60), np.full(8, 900)]) == [(0, 16, 100), (16, 32, 900)]
    assert [end - first for first, end, _ in alike(np.arange(800, 0, -1))] == [100] * 8


def test_who_fills_a_free_slot_keeps_neighbours_alike_and_brings_all_it_has(base: Path) -> None:
    config = load_model(base).config
    cache = Cache(config, slots=48, positions=64)
    cache.lengths[:] = np.r_[np.full(16, 60), np.full(15, 40), 45, np.full(15, 20), 10]
    for slot in range(48):
        cache.keys[1][slot, :, : cache.lengths[slot]] = slot
    assert cache.vacate(3, 47) == [(31, 3), (32, 31), (47, 32)]
    assert cache.lengths[[3, 31, 32]].tolist() == [45, 20, 10]
    assert [set(cache.keys[1][slot, :, :10].ravel()) for slot in (3, 31, 32)] == [{31.0}, {32.0}, {47.0}]
    assert cache.vacate(46, 46) == []
    cache.lengths[:] = 30
    assert cache.vacate(3, 47) == [(47, 3)]  # nobody is longer than the last


def test_a_product_by_tiles_is_the_product() -> None:
    rng = np.random.default_rng(5)
    for rows, wide, out in [
        (1, 128, 2048),
        (3, 128, 2048),
        (64, 128, 2048),
        (200, 128, 2048),
        (9, 1024, 320),
        (64, 128, 2047),
    ]:
        x = rng.standard_normal((rows, wide)).astype(np.float32)
        weight = rng.standard_normal((wide, out)).astype(np.float32)
        np.testing.assert_allclose(product(x, weight), x.astype(np.float64) @ weight, rtol=0, atol=1e-3)


def test_bfloat16_tensors_are_read_exactly(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [0.15625, 3e38]], dtype=np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    path = tmp_path / "t.safetensors"
    header = json.dumps({"t": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    wanted = (halves.astype(np.uint32) << 16).view(np.float32)
    assert read_tensors(path)["t"].tolist() == wanted.tolist()


def test_silu_of_extremes_is_finite_and_silent() -> None:
    x = np.array([[-1e4, -100.0, 0.0, 100.0]], dtype=np.float32)
    assert silu(x).tolist() == [[0.0, pytest.approx(0.0, abs=1e-30), 0.0, 100.0]]
