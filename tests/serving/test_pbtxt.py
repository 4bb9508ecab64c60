"""config.pbtxt text: what protobuf's own parser reads back is what was meant."""

from __future__ import annotations

from optimize.serving._pbtxt import Port, Word, batched, parameters, text


def test_text_has_messages_lists_words_and_quoted_strings() -> None:
    made = text(
        {"name": 'a "b"', "n": 3, "on": True, "kind": Word("KIND"), "dims": [1, -1], "sub": {"x": []}, "empty": {}}
    )
    assert made == 'name: "a \\"b\\""\nn: 3\non: true\nkind: KIND\ndims: [1, -1]\nsub {\n  x: []\n}\nempty { }'


def test_a_list_of_messages_repeats_the_field() -> None:
    assert text({"p": parameters({"k": "v", "l": "w"})}).count("p {") == 2


def test_a_port_without_dims_beside_the_batch_is_reshaped() -> None:
    port = Port(name="t", type="TYPE_FP32", dims=(-1,))
    assert port.fields(batched=True) == {"name": "t", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}
    assert port.fields(batched=False) == {"name": "t", "data_type": "TYPE_FP32", "dims": [-1]}


def test_batched_wants_a_free_first_dimension_everywhere() -> None:
    free, fixed = Port(name="a", type="T", dims=(-1, 3)), Port(name="b", type="T", dims=(2, 3))
    assert batched([free]) and not batched([free, fixed]) and not batched([Port(name="c", type="T", dims=())])


def test_inputs_whose_free_first_dims_differ_are_not_stacked() -> None:
    """Positions that all samples share have a free first dim as well, and it is not the batch."""
    latents, positions = (Port(name=n, type="T", dims=(-1, 3), first=f) for n, f in (("a", "B"), ("b", "S")))
    assert batched([latents, latents]) and not batched([latents, positions])
