"""Routes of graphs: sent, queued, remembered, ended."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .asked import Refused, Row, read_json, read_map, texts, whole
from .jobs import ENDED, IN_PROGRESS, PENDING, STATUSES, assets, job
from .service import Service

MOST = 1000  # rows of a list


class GraphRoutes:
    """The handlers of one host."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> list[Row]:
        """The rows of the table."""
        return [
            ("/prompt", "GET", self.queue_length),
            ("/prompt", "POST", self.prompt),
            ("/queue", "GET", self.queue),
            ("/queue", "POST", self.change_queue),
            ("/history", "GET", self.history),
            ("/history", "POST", self.change_history),
            ("/history/{id}", "GET", self.history_of),
            ("/interrupt", "POST", self.interrupt),
            ("/jobs", "GET", self.jobs),
            ("/jobs/cancel", "POST", self.cancel_jobs),
            ("/jobs/{id}", "GET", self.job),
            ("/jobs/{id}/cancel", "POST", self.cancel_job),
            ("/jobs/{id}/assets", "GET", self.job_assets),
        ]

    async def queue_length(self, _: Request) -> Response:
        return JSONResponse(self._service.prompts.status())

    async def prompt(self, request: Request) -> Response:
        return await self._service.submit(await read_json(request))

    async def queue(self, _: Request) -> Response:
        prompts = self._service.prompts
        running = [prompt.row for prompt in prompts.running.values()]
        return JSONResponse({"queue_running": running, "queue_pending": [prompt.row for prompt in prompts.pending]})

    async def change_queue(self, request: Request) -> Response:
        asked = await read_map(request)
        if asked.get("clear"):
            self._service.prompts.remove(None)
        self._service.prompts.remove(texts(asked.get("delete", [])))
        return Response()

    async def history(self, request: Request) -> Response:
        limit = whole(request, "max_items", MOST, MOST) or MOST
        entries = await self._service.ask(self._service.history.newest, limit, whole(request, "offset", 0, 2**62))
        return JSONResponse({entry.id: entry.row for entry in reversed(entries)})

    async def history_of(self, request: Request) -> Response:
        entry = await self._service.ask(self._service.history.get, request.path_params["id"])
        return JSONResponse({} if entry is None else {entry.id: entry.row})

    async def change_history(self, request: Request) -> Response:
        asked = await read_map(request)
        if asked.get("clear"):
            await self._service.ask(self._service.history.unlist, None)
        await self._service.ask(self._service.history.unlist, texts(asked.get("delete", [])))
        return Response()

    async def interrupt(self, request: Request) -> Response:
        asked = await read_json(request)
        wanted = asked.get("prompt_id") if isinstance(asked, dict) else None
        if wanted is not None and not isinstance(wanted, str):
            raise Refused(400, f"prompt_id is the id of a graph, got {wanted!r:.80}")
        self._service.prompts.interrupt(wanted)
        return Response()

    async def jobs(self, request: Request) -> Response:
        wanted = request.query_params.get("status", "")
        statuses = [name for name in wanted.split(",") if name] or list(STATUSES)
        if unknown := set(statuses) - set(STATUSES):
            raise Refused(400, f"there is no status {unknown.pop()!r:.40}; wanted some of {', '.join(STATUSES)}")
        limit, offset = whole(request, "limit", 100, MOST), whole(request, "offset", 0, 2**62)
        prompts, history = self._service.prompts, self._service.history
        here = [job(prompt, PENDING) for prompt in reversed(prompts.pending) if PENDING in statuses]
        here += [job(prompt, IN_PROGRESS) for prompt in prompts.running.values() if IN_PROGRESS in statuses]
        ended = [status for status in ENDED if status in statuses]
        total = len(here)
        rows = here[offset : offset + limit]
        if ended:
            total += await self._service.ask(history.count, ended)
            begin = max(offset - len(here), 0)
            entries = await self._service.ask(history.newest, limit - len(rows), begin, ended)
            rows += [job(entry, entry.status) for entry in entries]
        more = offset + len(rows) < total
        pagination = {"offset": offset, "limit": limit, "total": total, "has_more": more}
        return JSONResponse({"jobs": rows, "pagination": pagination})

    async def job(self, request: Request) -> Response:
        found, status = await self._service.find(request.path_params["id"])
        return JSONResponse(job(found, status, whole=True))

    async def job_assets(self, request: Request) -> Response:
        found, _ = await self._service.find(request.path_params["id"])
        rows = assets(found)
        pagination = {"offset": 0, "limit": MOST, "total": len(rows), "has_more": False}
        return JSONResponse({"job_id": found.id, "assets": rows, "pagination": pagination})

    async def cancel_job(self, request: Request) -> Response:
        return JSONResponse({"cancelled": self._service.prompts.cancel(request.path_params["id"])})

    async def cancel_jobs(self, request: Request) -> Response:
        asked = texts((await read_map(request)).get("job_ids"))
        return JSONResponse({"cancelled": [name for name in asked if self._service.prompts.cancel(name)]})
