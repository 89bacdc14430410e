"""A middleware for vllm serve that names the server in each answer, as the stand-in for model servers does."""

import os


class ServedBy:
    def __init__(self, app):
        self.app = app
        self.header = (b"x-served-by", os.environ.get("POD_NAME", "").encode())

    async def __call__(self, scope, receive, send):
        async def named(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self.header]
            await send(message)

        await self.app(scope, receive, named if scope["type"] == "http" else send)
