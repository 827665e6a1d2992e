"""Layers of the text transformer compute what those of transformers' EuroBertForMaskedLM do: equal logits."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dit_video.nn.attention import Attention, QKNorm
from dit_video.nn.mlp import SwiGLU
from dit_video.nn.norm import RMSNorm
from dit_video.nn.positions import rope_angles

V, D, K, N = 50, 32, 4, 11


@pytest.fixture(scope="module")
def theirs():
    sizes = {"hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": K}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    model = transformers.EuroBertForMaskedLM(transformers.EuroBertConfig(vocab_size=V, **sizes, **ids)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.slow
def test_its_layers_give_the_logits_of_a_published_masked_language_model(theirs):
    config, rngs = theirs.config, nnx.Rngs(0)
    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in theirs.named_parameters()}
    tokens = np.random.default_rng(0).integers(0, V, (2, N))
    theta = config.rope_parameters["rope_theta"]
    angles = rope_angles(np.arange(N, dtype=np.float32)[:, None], D // K, theta=theta)

    def norm(x, scale):
        layer = RMSNorm(D, rngs=rngs, epsilon=config.rms_norm_eps)
        layer.scale[...] = scale
        return layer(x)

    x = weights["model.embed_tokens.weight"][tokens]
    for number in range(config.num_hidden_layers):
        of_layer = {name: weights[f"model.layers.{number}.{name}.weight"] for name in _NAMES}
        attention = Attention(D, K, dtype=jnp.float32, rngs=rngs, qk_norm=QKNorm.NONE)  # biases begin at zero
        qkv = [of_layer[f"self_attn.{name}_proj"].T.reshape(D, K, D // K) for name in "qkv"]
        attention.qkv.kernel[...] = jnp.stack(qkv, axis=1)
        attention.out.kernel[...] = of_layer["self_attn.o_proj"].T.reshape(K, D // K, D)
        mlp = SwiGLU(D, config.intermediate_size, dtype=jnp.float32, rngs=rngs)
        for ours, name in ((mlp.gate, "gate"), (mlp.up, "up"), (mlp.down, "down")):
            ours.kernel[...] = of_layer[f"mlp.{name}_proj"].T
        x = x + attention(norm(x, of_layer["input_layernorm"]), angles)
        x = x + mlp(norm(x, of_layer["post_attention_layernorm"]))
    ours = np.asarray(norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T)
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


_NAMES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    *("input_layernorm", "post_attention_layernorm"),
)
