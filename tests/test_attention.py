"""Attention as the definition has it, whichever way it is computed, and products where they are the faster way."""

import pytest
import torch
from torch.nn import functional

from scpo_ray import attention
from scpo_ray.attention import attend


def by_definition(query, key, value, scale, sees):
    """One row after the other, in float64."""
    query, key, value = (each.double() for each in (query, key, value))
    found = torch.zeros_like(query)
    for sequence in range(query.shape[0]):
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            for row in range(query.shape[2]):
                columns = range(key.shape[2]) if sees is None else torch.nonzero(sees[row]).flatten().tolist()
                keys, values = key[sequence, shared, list(columns)], value[sequence, shared, list(columns)]
                weights = torch.softmax(scale * keys @ query[sequence, head, row], dim=0)
                found[sequence, head, row] = weights @ values
    return found


def states(number, heads, kv_heads, rows, columns, size, *, learns=True):
    """Views into rows of tokens, as a layer hands them over."""
    draw = torch.Generator().manual_seed(rows)
    flat = [
        torch.randn(number * length, each * size, generator=draw, requires_grad=learns)
        for each, length in ((heads, rows), (kv_heads, columns), (kv_heads, columns))
    ]
    lengths = (rows, columns, columns)
    return flat, [
        each.unflatten(1, (-1, size)).transpose(0, 1).unflatten(1, (number, length)).transpose(0, 1)
        for each, length in zip(flat, lengths, strict=True)
    ]


@pytest.fixture
def fused(monkeypatch):
    """Lengths that went to the fused kernel."""
    found, kernel = [], functional.scaled_dot_product_attention

    def counted(query, key, *others, **settings):
        found.append(key.shape[2])
        return kernel(query, key, *others, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    return found


@pytest.mark.parametrize("most", [1, 3000, 2**30], ids=["one head at a time", "some", "all"])
@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_products_and_their_gradients_are_the_definitions(monkeypatch, fused, most, kind, heads, kv_heads):
    monkeypatch.setitem(attention.LONGEST_BY_PRODUCTS, "float32", 100)
    monkeypatch.setattr(attention, "_MOST_SCORES", most)
    rows, columns = (5, 9) if kind == "masked" else (7, 7)
    flat, (query, key, value) = states(3, heads, kv_heads, rows, columns, 8)
    sees = {
        "full": None,
        "causal": torch.ones(rows, columns, dtype=torch.bool).tril(),
        "masked": torch.ones(rows, columns, dtype=torch.bool).tril(4),
    }[kind]
    given = {"is_causal": True} if kind == "causal" else {"sees": sees}
    found = attend(query, key, value, scale=0.3, **given)
    assert not fused
    expected = by_definition(query, key, value, 0.3, sees)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, flat, towards)
    for one, other in zip(gradients, torch.autograd.grad(expected, flat, towards.double()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_scale_is_that_of_the_size(monkeypatch):
    monkeypatch.setitem(attention.LONGEST_BY_PRODUCTS, "float32", 100)
    _, (query, key, value) = states(1, 2, 2, 6, 6, 16)
    torch.testing.assert_close(attend(query, key, value), attend(query, key, value, scale=0.25))


@pytest.mark.parametrize("size", [32, 64])
def test_in_bfloat16_products_are_nearly_as_close_as_the_fused_kernel(monkeypatch, fused, size):
    """To float32's gradients, or nearly so: half as far again at most, the queries' (measured: 1.4)."""
    flat, (query, key, value) = states(4, 4, 2, 200, 200, size)
    towards = torch.randn(4, 4, 200, size, generator=torch.Generator().manual_seed(1))
    exact = torch.autograd.grad(
        functional.scaled_dot_product_attention(query, key, value, enable_gqa=True), flat, towards
    )
    fused.clear()
    off = []
    for longest in (400, 0):
        monkeypatch.setitem(attention.LONGEST_BY_PRODUCTS, "bfloat16", longest)
        with torch.autocast("cpu", torch.bfloat16):
            found = attend(query, key, value)
        assert found.dtype == torch.bfloat16
        gradients = torch.autograd.grad(found, flat, towards.bfloat16())
        off.append([((a - b).norm() / b.norm()).item() for a, b in zip(gradients, exact, strict=True)])
    assert fused == [200]
    for one, other in zip(*off, strict=True):
        assert 0 < one < 1.5 * other < 0.01


def test_products_are_for_short_texts_that_are_learned_from(fused):
    for precision, longest in attention.LONGEST_BY_PRODUCTS.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            for length in (longest, longest + 1):
                attend(*states(1, 2, 2, length, length, 8)[1])
            assert fused == [longest + 1]
            fused.clear()
            attend(*states(1, 2, 2, 10, 10, 8, learns=False)[1])
            with torch.no_grad():
                attend(*states(1, 2, 2, 10, 10, 8)[1])
            assert fused == [10, 10]
            fused.clear()
    attend(*states(1, 2, 2, 10, 10, 8)[1])  # in float32
    assert fused == [10]
