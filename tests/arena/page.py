"""A page of a headless Chromium, through DevTools: looked at as a person would, and clicked, tapped and typed at."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE = 60.0
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, " ": 32, "1": 49, "2": 50, "0": 48, "Tab": 9}
KEYS |= {"Enter": 13, "Escape": 27}
SETTLED = 0.4
"""Seconds after which the page takes an answer to a new question."""


class Page:
    """One tab in a context of its own, so that it shares no cookies."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.complaints: list[str] = []
        """What the console shows in red, and exceptions."""
        self.seen: list[str] = []
        """Addresses and headers of all that the page was given."""

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message)
        return await asyncio.wait_for(self._waiting[number], PATIENCE)

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                future = self._waiting.pop(told["id"])
                if "error" in told:
                    future.set_exception(RuntimeError(told["error"]["message"]))
                else:
                    future.set_result(told["result"])
                continue
            parameters = told["params"]
            match told["method"]:
                case "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(parameters["exceptionDetails"]))
                case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                    self.complaints.append(parameters["entry"]["text"])
                case "Runtime.consoleAPICalled":
                    self.complaints.append(json.dumps(parameters["args"]))
                case "Network.responseReceived":
                    response = parameters["response"]
                    self.seen.append(response["url"] + json.dumps(response["headers"]))

    async def open(self, url: str) -> None:
        context = await self.send("Target.createBrowserContext", disposeOnDetach=True)
        target = await self.send("Target.createTarget", url="about:blank", browserContextId=context["browserContextId"])
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        told = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"])
        return told["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The value, once it is true."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            told: Any = "nothing yet"
            with contextlib.suppress(RuntimeError):  # the page is being loaded
                if found := await self.value(expression):
                    return found
                told = await self.value("document.body.innerText")
            assert asyncio.get_running_loop().time() < deadline, f"{expression}: not within {PATIENCE:g} s: {told}"
            await asyncio.sleep(0.02)

    async def ready(self) -> str:
        """The ticket, once a question may be answered."""
        await self.until("document.getElementById('ballot')?.ariaBusy === 'false' && !busy")
        await asyncio.sleep(SETTLED)
        return str(await self.value("pair.ticket"))

    async def asked(self, question: str) -> None:
        await self.until(f"!busy && question === {json.dumps(question)}")
        await asyncio.sleep(SETTLED)

    async def press(self, key: str, times: int = 1) -> None:
        """Press a key; more ``times`` is holding it down."""
        code = {"key": key, "windowsVirtualKeyCode": KEYS[key], "text": key if len(key) == 1 else ""}
        for number in range(times):
            await self.send("Input.dispatchKeyEvent", type="keyDown", autoRepeat=number > 0, **code)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    async def middle(self, selector: str) -> dict[str, float]:
        script = f"(r => ({{x: r.x + r.width / 2, y: r.y + r.height / 2}}))({_find(selector)}.getBoundingClientRect())"
        found: dict[str, float] = await self.value(script)
        return found

    async def click(self, selector: str, times: int = 1) -> None:
        at = await self.middle(selector)
        for number in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                await self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=number, **at)

    async def point(self, x: float, y: float) -> None:
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def tap(self, selector: str) -> None:
        at = await self.middle(selector)
        await self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
        await self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    async def phone(self, width: int = 375, height: int = 667) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True
        )
        await self.send("Emulation.setTouchEmulationEnabled", enabled=True)

    async def window(self, width: int, height: int) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self, path: Path) -> None:
        told = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))


def _find(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


@contextlib.asynccontextmanager
async def page_at(endpoint: str, url: str) -> AsyncIterator[Page]:
    """A tab at ``url``, of a person who was never there."""
    async with aiohttp.ClientSession() as own, own.ws_connect(endpoint, max_msg_size=0) as socket:
        page = Page(socket)
        listening = asyncio.ensure_future(page.listen())
        try:
            await page.open(url)
            yield page
        finally:
            listening.cancel()
