"""`GET /results/ID.png`: a kept picture, as a file that browsers may keep for good."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from latentwire import Caller, LatentwireError, UnknownImage, caller_of

# an id never gets another picture; private: caches that several people share do not know who has the token
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}


def make_routes(read: Callable[[str, Caller], Awaitable[bytes]]) -> list[Route]:
    """The routes; `read` gives a result's PNG, or raises a LatentwireError."""

    async def picture(request: Request) -> Response:
        try:
            data = await read(request.path_params["id"], caller_of(request.scope))
        except UnknownImage as error:
            return PlainTextResponse(f"{error.message}\n", 404)
        except LatentwireError as error:  # the disk, say: the picture may be there another time
            return PlainTextResponse(f"{error.message}\n", 503)
        return Response(data, headers=FOR_GOOD, media_type="image/png")

    return [Route("/results/{id}.png", picture)]
