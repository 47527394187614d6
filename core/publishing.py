"""A finished picture on its way out: the plugins' turn, the PNG, its place in the image store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .events import Image
from .hookspecs import EncodedContext, ImageContext
from .images import encode

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from .host import Host
    from .requests import GenerateRequest


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a picture comes from; the fields are those of `EncodedContext`."""

    client: str
    owner: str
    job: str
    index: int
    seed: int
    request: "GenerateRequest"
    made: dict[str, Any]


def publish(host: "Host", origin: Origin, image: "PILImage", metadata: dict[str, str], keep: bool = True) -> Image:
    """The event of a finished picture, once plugins have changed and stored it; in a worker thread.

    Args:
        keep: Whether plugins store it for good.

    Raises:
        LatentwireError: a plugin raised.
    """
    context = ImageContext(origin.job, origin.index, origin.request, origin.seed, image, metadata)
    host.plugins.call("image_finished", context)
    picture = encode(context.image, "png", metadata=context.metadata)
    image_id = host.images.put(picture.data)
    if not keep:
        return Image(origin.job, origin.index, origin.seed, picture, None, image_id)
    encoded = EncodedContext(
        host,
        origin.client,
        origin.owner,
        origin.job,
        origin.index,
        origin.seed,
        origin.request,
        origin.made,
        image_id,
        picture,
    )
    host.plugins.call("image_encoded", encoded)
    if encoded.unstored is not None:
        host.counters.add("unstored_pictures", encoded.unstored)
    return Image(origin.job, origin.index, origin.seed, picture, None, image_id, encoded.result, encoded.unstored)
