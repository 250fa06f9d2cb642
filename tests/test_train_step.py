"""The training step: equal to torch's, the same on every mesh, in place, and split from the first moment on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from cases import Case, all_cases
from cases.llama import llama
from parity import make_reference, random_ids
from trained import empty, random_model, same_tree, small

from easydel import AutoEasyDeLModelForCausalLM
from easydel.errors import ArgumentError
from easydel.lora import LoRA, add_adapters
from easydel.train import IGNORED, State, init_state, loss_sums, step
from easydel.tree import flatten

CASES = {case.name: case for case in all_cases()}
LLAMA = small(llama("step"))
ONE = small(llama("one-layer"), num_hidden_layers=1)
MOE = small(CASES["mixtral-plain"], num_local_experts=4, num_hidden_layers=1)
B, T = 8, 12


def adam(rate: float = 1e-2) -> Any:
    """With an epsilon that keeps rounding errors in gradients of nearly nothing from becoming whole steps."""
    return optax.adamw(rate, eps=1e-3, weight_decay=0.1)


def batch(case: Case, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with very different numbers of labels."""
    ids = random_ids(case, B, T, seed)
    labels = np.where(np.arange(T) < np.arange(1, B + 1)[:, None] + 3, ids, IGNORED)
    return {"input_ids": ids, "labels": labels}


def trained(case: Case, steps: int = 2, *, stepping: dict[str, Any] | None = None, **choices: Any) -> Any:
    """(losses, last metrics, state) after a few steps of the same model on the same batches."""
    model, params = random_model(case, **choices)
    optimizer = adam()
    state, run = init_state(model, params, optimizer), step(model, optimizer, **(stepping or {}))
    losses, metrics = [], None
    for seed in range(steps):
        state, metrics = run(state, batch(case, seed=seed))
        losses.append(float(metrics.loss))
    return losses, metrics, state


def loss_of(case: Case) -> float:
    """Before any step, in float32."""
    model, params = random_model(case)
    loss = jax.jit(loss_sums, static_argnums=0)(model, params, batch(case))
    return float(loss.nll / loss.tokens)


@functools.cache
def plainly_trained(name: str) -> Any:
    """On one device, without a mesh, in one part."""
    return trained(next(case for case in (ONE, LLAMA, MOE) if case.name == name))


def test_twenty_losses_equal_those_of_torch(tmp_path: Path):
    reference = make_reference(LLAMA, tmp_path).train()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    torch_optimizer = torch.optim.AdamW(reference.parameters(), **settings)
    model, params = AutoEasyDeLModelForCausalLM.from_pretrained(tmp_path, donatable=True)
    optimizer = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    state, run = init_state(model, params, optimizer), step(model, optimizer, clip=1.0, tokens=16)
    theirs, ours = [], []
    for seed in range(20):
        given = batch(LLAMA, seed=seed % 3)
        torch_optimizer.zero_grad()
        loss = reference(**{name: torch.tensor(array) for name, array in given.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        torch_optimizer.step()
        theirs.append(loss.item())
        state, metrics = run(state, given)
        ours.append(float(metrics.loss))
    assert theirs[0] - theirs[-1] > 0.3, "nothing was learned"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


MESHES = [
    (ONE, (1, 8, 1, 1), {}),
    (ONE, (2, 2, 2, 1), {}),
    (ONE, (2, 1, 1, 4), {}),
    (LLAMA, (1, 2, 2, 2), {"scan_layers": True}),
    (MOE, (2, 2, 2, 1), {}),
    (MOE, (1, 2, 2, 2), {}),
]


@pytest.mark.parametrize(("case", "dims", "choices"), MESHES, ids=lambda value: getattr(value, "name", str(value)))
def test_eight_devices_train_as_one_does(case: Case, dims: tuple[int, ...], choices: dict[str, Any]):
    losses, metrics, state = trained(case, mesh=dims, stepping={"tokens": 4}, **choices)
    expected_losses, expected_metrics, expected = plainly_trained(case.name)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    np.testing.assert_allclose(metrics.grad_norm, expected_metrics.grad_norm, rtol=1e-5)
    same_tree(per_layer(case, state, **choices), expected.params, 2e-5)


def per_layer(case: Case, state: State, **choices: Any) -> dict[str, Any]:
    """Parameters by path, with stacked layers taken apart."""
    leaves = flatten(state.params)
    apart: dict[str, Any] = {}
    for path, parts in empty(case, **choices).canonical_paths().items():
        rows = [leaves[path]] if parts == [path] else list(np.asarray(leaves[path]))
        apart |= dict(zip(parts, rows, strict=True))
    return apart


def test_moments_are_split_like_their_parameters_before_and_after_a_step():
    model, params = random_model(ONE, mesh=(1, 4, 2, 1))
    optimizer = optax.chain(optax.trace(0.9), adam())
    state = init_state(model, params, optimizer)
    split = {path: leaf.sharding for path, leaf in flatten(params).items()}
    assert sum(not sharding.is_fully_replicated for sharding in split.values()) >= 8
    after, _ = step(model, optimizer)(state, batch(ONE))
    for moments in (state.moments, after.moments):
        copies = [moments[0].trace, moments[1][0].mu, moments[1][0].nu]
        for copy in copies:
            assert {path: leaf.sharding for path, leaf in flatten(copy).items()} == split
        assert moments[1][0].count.sharding.is_fully_replicated
    assert {path: leaf.sharding for path, leaf in flatten(after.params).items()} == split


def test_parameters_and_moments_are_updated_in_place():
    model, params = random_model(ONE)
    optimizer = adam()
    state, run = init_state(model, params, optimizer), step(model, optimizer)
    program = run.lower(state, batch(ONE)).compile()
    analysis = program.memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.trained, state.moments)))
    assert analysis.alias_size_in_bytes >= size
    after, _ = run(state, batch(ONE))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.trained, state.moments)))
    run(after, batch(ONE))
    assert len(run._programs) == 1
    assert next(iter(run._programs.values()))._cache_size() == 1


def test_a_batch_in_parts_trains_as_a_whole_one():
    losses, metrics, state = trained(ONE, stepping={"accumulate": 4, "tokens": 8})
    expected_losses, expected_metrics, expected = plainly_trained(ONE.name)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, expected_metrics.grad_norm, rtol=1e-5)
    assert metrics.tokens == expected_metrics.tokens == np.sum(batch(ONE)["labels"][:, 1:] != IGNORED)
    same_tree(state.params, expected.params, 1e-5)


def test_gradients_are_scaled_down_to_the_norm_and_the_z_loss_is_in_the_objective_alone():
    model, params = random_model(ONE)
    before = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    optimizer = optax.sgd(1.0)
    run = step(model, optimizer, clip=0.5, z_weight=0.1)
    state, metrics = run(init_state(model, params, optimizer), batch(ONE))
    changes = [before[path] - np.asarray(leaf) for path, leaf in flatten(state.params).items()]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(part**2) for part in changes)), 0.5, rtol=1e-4)
    assert metrics.grad_norm > 0.6
    np.testing.assert_allclose(metrics.loss, loss_of(ONE), rtol=1e-6)
    assert metrics.objective > 1.1 * metrics.loss


def test_bfloat16_computes_and_float32_remembers():
    """Updates that bfloat16 would round away add up in the parameters, and every product is of bfloat16."""
    model, params = random_model(ONE, dtype=jnp.bfloat16)
    optimizer = optax.sgd(1e-5)
    state, run = init_state(model, params, optimizer), step(model, optimizer)
    before = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    text = run.lower(state, batch(ONE)).as_text()
    kernels = [line for line in text.splitlines() if "dot_general" in line and "x97x" not in line]
    assert kernels
    linear = [line for line in kernels if "tensor<80x48x" in line or "tensor<48x80x" in line]
    assert linear
    assert [line for line in linear if "bf16" not in line] == []
    state, metrics = run(state, batch(ONE))
    np.testing.assert_allclose(metrics.loss, loss_of(ONE), rtol=1e-2)
    kernel = "model/layers/0/mlp/up_proj/kernel"
    after = np.asarray(flatten(state.params)[kernel])
    assert after.dtype == np.float32
    assert 0 < np.abs(after - before[kernel]).max() < np.abs(before[kernel]).max() * 2**-9


def test_remat_by_name_saves_memory():
    optimizer = optax.sgd(0.1)
    _, params = random_model(LLAMA, scan_layers=True)

    def temporaries(remat: str) -> int:
        model = empty(LLAMA, remat=remat, scan_layers=True)
        long = {"input_ids": np.ones((8, 128), np.int32)}
        run, state = step(model, optimizer), init_state(model, params, optimizer)
        return run.lower(state, long).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporaries(remat) for remat in ("everything", "save_attention", "save_mlp", "save_attention_and_mlp")]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < 0.8 * temporaries("everything_saveable")
    assert sizes[0] < 0.8 * temporaries("dots_saveable")


REMATS = [(LLAMA, "save_attention_and_mlp", {"scan_layers": True}), (MOE, "save_mlp", {"mesh": (1, 2, 2, 2)})]


@pytest.mark.parametrize(("case", "remat", "choices"), REMATS, ids=lambda value: getattr(value, "name", str(value)))
def test_what_is_kept_changes_no_result(case: Case, remat: str, choices: dict[str, Any]):
    losses, _, state = trained(case, remat=remat, **choices)
    expected_losses, _, expected = plainly_trained(case.name)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    same_tree(per_layer(case, state, **choices), expected.params, 2e-5)


def test_only_what_is_chosen_is_trained():
    model, params = random_model(ONE)
    before = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    optimizer = adam()
    state = init_state(model, params, optimizer, trainable=lambda path: "norm" in path)
    assert all("norm" in path for path in flatten(state.moments[0].mu))
    state, _ = step(model, optimizer)(state, batch(ONE))
    changed = {path for path, leaf in flatten(state.params).items() if not np.array_equal(leaf, before[path])}
    assert changed == {path for path in before if "norm" in path}


@pytest.mark.parametrize(
    ("name", "buffers"),
    [("apertus-xielu-biased", ("act_fn/beta", "act_fn/eps")), ("deepseek_v3-groups", ("gate/correction_bias",))],
)
@pytest.mark.parametrize("scan_layers", [False, True], ids=["loop", "scan"])
def test_weight_decay_leaves_what_has_no_gradient(name: str, buffers: tuple[str, ...], scan_layers: bool):
    model, params = random_model(next(case for case in all_cases() if case.name == name), scan_layers=scan_layers)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = init_state(model, params, optimizer)
    before = {path: np.array(leaf) for path, leaf in flatten(state.params).items()}
    state, _ = step(model, optimizer)(state, {"input_ids": np.arange(10)[None] + 3})
    same = {path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, before[path])}
    assert same == {path for path in before if path.endswith(buffers)} != set()


def test_what_cannot_be_trained_is_refused():
    model, params = random_model(ONE, int8=True)
    with pytest.raises(ArgumentError, match=r"int8 cannot be trained(.|\n)*adapters"):
        init_state(model, params, optax.sgd(0.1))
    with pytest.raises(ArgumentError, match="nothing to train"):
        init_state(model, params, optax.sgd(0.1), trainable=lambda path: False)


def test_a_step_made_before_the_adapters_says_so():
    model, params = random_model(ONE)
    optimizer = optax.sgd(0.1)
    run = step(model, optimizer)
    params = add_adapters(model, LoRA(r=2, target_modules=["q_proj"]))
    state = init_state(model, params, optimizer)
    with pytest.raises(ArgumentError, match="q_proj/lora_A is not the model's"):
        run(state, batch(ONE))


def test_numpy_parameters_can_be_trained():
    model, params = random_model(ONE)
    optimizer = optax.sgd(0.1)
    run, host = step(model, optimizer), jax.tree.map(np.array, params)
    losses = [run(init_state(model, tree, optimizer), batch(ONE))[1].loss for tree in (host, params)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.ones((B, T))}, "labels of the batch are no integers"),
        ({"lables": np.ones((B, T), int)}, r"lables.*it may have input_ids"),
        ({"labels": np.ones((B, T - 1), int)}, r"\(8, 11\).*\[batch, length\]"),
        ({"input_ids": np.ones((6, T), int), "labels": np.ones((6, T), int)}, "6 sequences.*accumulate=4"),
        ({"input_ids": np.full((B, T), 97)}, r"input_ids\[0, 0\] is 97, outside the vocabulary of 97"),
        ({"input_ids": np.ones((0, T), int), "labels": np.ones((0, T), int)}, "the batch is empty"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change: dict[str, Any], message: str):
    run = step(empty(ONE), optax.sgd(0.1), accumulate=4)
    with pytest.raises(ArgumentError, match=message):
        run.placed(batch(ONE) | change)


@pytest.mark.parametrize("kind", [float, np.float16, bool])
def test_a_mask_of_any_kind_is_taken_as_the_model_takes_it(kind: Any):
    run, mask = step(empty(ONE), optax.sgd(0.1)), np.arange(T) >= np.arange(B)[:, None]
    for given in ((mask * 0.5).astype(kind), jnp.asarray(mask, kind)):
        assert np.array_equal(run.placed(batch(ONE) | {"attention_mask": given})["attention_mask"], mask)


@pytest.mark.parametrize(
    "arguments",
    [{"accumulate": 0}, {"accumulate": 2.0}, {"clip": 0.0}, {"clip": float("nan")}, {"tokens": 0}, {"z_weight": -1.0}],
)
def test_arguments_without_a_meaning_are_refused(arguments: dict[str, Any]):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        step(empty(ONE), optax.sgd(0.1), **arguments)
