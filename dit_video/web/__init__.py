"""A page on 127.0.0.1 for the person at this machine alone: who may ask, and the server.

Starlette and uvicorn (extra `web`): ranges of files that a browser asks for to play a video, many requests at a time,
and web sockets, none of which the server of the standard library has.
"""
