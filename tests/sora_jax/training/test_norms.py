import jax
import numpy as np

from sora_jax.training.norms import flatten, parameter_norms


def test_norms_of_layers_parts_and_groups_add_up(toy):
    params = toy.init(jax.random.key(0))
    norms = flatten(jax.device_get(parameter_norms(params)))
    assert list(norms) == ["param_norm/net", *(f"param_norm/net/blocks/{i}" for i in range(3)), "param_norm/net/head"]
    second = params["net"]["blocks"]["kernel"][1], params["net"]["blocks"]["bias"][1]
    np.testing.assert_allclose(norms["param_norm/net/blocks/1"], np.sqrt(sum((x**2).sum() for x in second)), rtol=1e-6)
    parts = [norms[name] for name in norms if name != "param_norm/net"]
    np.testing.assert_allclose(norms["param_norm/net"], np.sqrt(np.sum(np.square(parts))), rtol=1e-6)
    assert list(flatten({"x": np.arange(11.0)}))[:2] == ["x/00", "x/01"]
