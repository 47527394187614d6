"""The host on the network: Starlette app, WebSocket sessions, wire codec, command line."""
