"""The model store: one load for all, counted leases, and nothing half-loaded from a bad folder."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from latentwire.core.build import PipelineBuild
from latentwire.core.errors import ModelLoadError, UnknownModel
from latentwire.core.families import FAMILIES
from latentwire.core.model_store import ModelStore
from latentwire.core.previews import STABLE_DIFFUSION_1, LatentFactors, TinyDecoder, factors_for
from latentwire.core.settings import EMBEDDED_MODEL, ModelSettings

BUILD = PipelineBuild("emoji", "ddim", "float32")


def store_of(folder: Path) -> ModelStore:
    return ModelStore({"emoji": ModelSettings(path=folder)}, torch.device("cpu"))


def test_many_leases_at_once_load_each_component_once_and_share_it() -> None:
    store = store_of(EMBEDDED_MODEL)
    loads: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: store.lease(BUILD, lambda name, *_: loads.append(name)), range(8)))
    assert len({id(lease.components["unet"]) for lease in leases}) == 1
    assert {row["leases"] for row in store.loaded()} == {8}
    for lease in leases:
        store.release(lease)
    assert {row["leases"] for row in store.loaded()} == {0}
    assert store.lease(BUILD, lambda *_: pytest.fail("nothing may load again")).components is not leases[0].components


def test_two_loads_at_once_leave_torch_as_it_was(tmp_path: Path) -> None:
    """accelerate swaps a method of nn.Module while it loads; overlapping loads used to leave it swapped."""
    stores = [store_of(EMBEDDED_MODEL) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda store: store.lease(BUILD), stores))
    assert not torch.nn.Linear(2, 2).weight.is_meta
    assert not any(parameter.is_meta for lease in leases for parameter in lease.components["unet"].parameters())


def test_another_dtype_is_another_component() -> None:
    store = store_of(EMBEDDED_MODEL)
    single, half = store.lease(BUILD), store.lease(PipelineBuild("emoji", "ddim", "bfloat16"))
    assert single.components["unet"].dtype == torch.float32
    assert half.components["unet"].dtype == torch.bfloat16


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="emoji"):
        store_of(EMBEDDED_MODEL).lease(PipelineBuild("nope", "ddim", "float32"))


def no_weights(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "unet/diffusion_pytorch_model.bin")
    weights.unlink()


def a_pickle_by_another_name(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "unet/diffusion_pytorch_model.safetensors")


def truncated_weights(folder: Path) -> None:
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def a_missing_tensor(folder: Path) -> None:
    weights = folder / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    tensors.popitem()
    save_file(tensors, weights, metadata={"format": "pt"})


def a_foreign_family(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="NoSuchPipeline")


def a_foreign_library(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["os", "system"])


def no_model_class(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["diffusers", "StableDiffusionPipeline"])


def a_previewer_of_other_latents(folder: Path) -> None:
    AutoencoderTiny(latent_channels=16).save_pretrained(folder / "previewer")


def a_previewer_without_weights(folder: Path) -> None:
    (folder / "previewer/diffusion_pytorch_model.safetensors").unlink()


def broken_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        no_weights, only_a_pickle, a_pickle_by_another_name, truncated_weights, a_missing_tensor,
        a_foreign_family, a_foreign_library, no_model_class, a_previewer_of_other_latents, a_previewer_without_weights,
        broken_json, no_folder,
    ],
)  # fmt: skip
def test_a_bad_folder_is_a_clear_error_and_leaves_nothing_leased(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    damage(folder)
    store = store_of(folder)
    with pytest.raises(ModelLoadError, match="model 'emoji'"):
        store.lease(BUILD)
    assert all(row["leases"] == 0 for row in store.loaded())


def test_a_load_that_failed_is_tried_again_once_the_folder_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    store = store_of(folder)
    with pytest.raises(ModelLoadError):
        store.lease(BUILD)
    weights.write_bytes(whole)
    assert store.lease(BUILD).components["unet"] is not None


def test_fitted_factors_paint_flat_colours_and_published_ones_are_used_for_their_family() -> None:
    vae = store_of(EMBEDDED_MODEL).lease(BUILD).components["vae"]
    factors = factors_for(FAMILIES["StableDiffusionPipeline"], vae)
    colours = np.array([(215, 40, 40), (20, 20, 20), (45, 95, 215), (255, 255, 255), (50, 165, 75), (250, 220, 60)])
    for colour in colours:
        flat = (torch.from_numpy(colour).float() / 127.5 - 1)[None, :, None, None].expand(1, 3, 64, 64)
        with torch.inference_mode():
            latents = vae.encode(flat).latent_dist.mean[0] * vae.config.scaling_factor
        painted = factors.paint(latents.numpy())[3:5, 3:5].reshape(-1, 3).mean(axis=0)
        assert colours[np.abs(colours - painted).sum(axis=1).argmin()].tolist() == colour.tolist()
    vae.register_to_config(scaling_factor=0.18215)
    assert factors_for(FAMILIES["StableDiffusionPipeline"], vae) is STABLE_DIFFUSION_1


def test_a_model_may_bring_a_previewer_and_does_without_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    brought = store_of(folder).lease(BUILD).previewer
    assert isinstance(brought, TinyDecoder)
    assert brought.paint(np.zeros((4, 8, 16), np.float32)).shape == (32, 64, 3)
    shutil.rmtree(folder / "previewer")
    fitted = store_of(folder).lease(BUILD).previewer
    assert isinstance(fitted, LatentFactors)
    assert fitted.paint(np.zeros((4, 8, 16), np.float32)).shape == (8, 16, 3)
