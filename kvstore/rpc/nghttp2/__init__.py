"""gRPC over HTTP/2 with libnghttp2: the default front.

    engine.py    the only importer of ngh2: connections, their limits, and sends that cannot raise
    framing.py   gRPC's five bytes before each message; compressed messages
    metadata.py  headers: metadata, timeouts, status messages
    deadlines.py many deadlines for the price of one timer
    session.py   an HTTP/2 connection on asyncio: one write per tick, keep-alive, errors; both roles

    authority.py    clients that libnghttp2 would refuse
    server.py    grpc.aio's Server: listening, methods, stopping         front.py   RpcServer, the seam services use
    serving.py   a connection's server side; calls.py, handlers.py: what stands behind a stream
    context.py   grpc.aio's ServicerContext

    channel.py   grpc.aio's Channel          client_*.py   its connection and its calls

Generated code works with it unchanged, since all it does is to call methods of a server or a channel.
"""
