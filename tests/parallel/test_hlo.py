"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lior_jax.parallel import hlo

TEXT = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %both = (f32[8,4]{1,0}, /*index=1*/bf16[16]{0}) all-reduce(%x, %z), channel_id=1, replica_groups=GROUPS, to_apply=%add
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

ENTRY %main (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0} parameter(0)
  %whole = f32[8,4]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}
  %loop = (s32[], f32[8,4]{1,0}) while(%t), condition=%add, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[1,8]<=[8]", 8),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0', 'axis_1'}", 8),
        ("{}", 8),
    ],
)
def test_bytes_are_those_of_a_ring_as_often_as_a_loop_goes(groups, size):
    work = hlo.work(TEXT.replace("GROUPS", groups), 8)
    assert work.calls == {"all-gather": 1, "all-reduce": 3}
    assert work.sent["all-gather"] == 3 / 4 * (8 * 4 * 4)
    assert work.sent["all-reduce"] == 3 * 2 * (size - 1) / size * (8 * 4 * 4 + 16 * 2)
    assert work.flops == 0


def test_products_count_as_often_as_they_are_made():
    def grow(x, w):
        return lax.scan(lambda w, _: (w + x.T @ (x @ w), None), w, length=5)[0]

    text = jax.jit(grow).lower(jnp.ones((16, 32)), jnp.ones((32, 24))).compile().as_text()
    assert hlo.work(text, 1) == hlo.Work(5 * 2 * (2 * 16 * 32 * 24), {}, {})
