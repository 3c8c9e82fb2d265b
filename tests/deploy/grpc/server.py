"""A gRPC server of all four kinds of calls, without generated code: messages are bytes. Prints its port; SIGTERM ends it gracefully.

server.py NAME [PORT]
"""

import signal
import sys
import threading
import time
from concurrent import futures

import grpc

NAME = sys.argv[1].encode()


def unary(request, context):
    if request == b"slow":
        time.sleep(0.3)
    if request == b"never":
        time.sleep(30)
    if request == b"broken":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
    context.set_trailing_metadata((("x-served-by", NAME.decode()),))
    return NAME + b" " + request


def server_stream(request, context):
    for i in range(int(request)):
        yield NAME + b" %d" % i
        time.sleep(0.02)


def client_stream(requests, context):
    return NAME + b" %d" % sum(len(request) for request in requests)


def bidirectional(requests, context):
    for request in requests:
        yield NAME + b" " + request


def health(request, context):
    return b"\x08\x01"


HANDLERS = {
    "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
    "/test.Echo/Server": grpc.unary_stream_rpc_method_handler(server_stream),
    "/test.Echo/Client": grpc.stream_unary_rpc_method_handler(client_stream),
    "/test.Echo/Both": grpc.stream_stream_rpc_method_handler(bidirectional),
}


class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        return HANDLERS.get(details.method)


server = grpc.server(futures.ThreadPoolExecutor(32), handlers=(Handlers(),))
port = server.add_insecure_port("127.0.0.1:" + (sys.argv[2] if len(sys.argv) > 2 else "0"))
server.start()
print(port, flush=True)
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
ended.wait()
server.stop(20).wait()
