"""A gRPC client through switchover. Says what it saw, one line each; ends with 1 if anything was not as it has to be.

client.py calls ADDRESS [CA]       all four kinds of calls, statuses, deadlines, cancellation, trailers
client.py load ADDRESS [CA]        unary calls and one bidirectional stream, until a line comes on stdin; then the tally
client.py status ADDRESS           the status of one call
"""

import sys
import threading
import time

import grpc

mode, address = sys.argv[1:3]
if len(sys.argv) > 3:
    with open(sys.argv[3], "rb") as ca:
        credentials = grpc.ssl_channel_credentials(ca.read())
    channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", "shop.test")])
else:
    channel = grpc.insecure_channel(address, [("grpc.enable_retries", 0)])

unary = channel.unary_unary("/test.Echo/Unary")
server = channel.unary_stream("/test.Echo/Server")
client = channel.stream_unary("/test.Echo/Client")
both = channel.stream_stream("/test.Echo/Both")


def status(call):
    try:
        call()
        return grpc.StatusCode.OK.name
    except grpc.RpcError as error:
        return error.code().name


def expect(what, seen, wanted):
    print(what, seen, flush=True)
    if seen != wanted:
        sys.exit(f"{what}: {seen!r} instead of {wanted!r}")


if mode == "calls":
    reply, call = unary.with_call(b"hello", timeout=10)
    name = reply.split(b" ")[0]
    expect("unary", reply, name + b" hello")
    expect("trailers", dict(call.trailing_metadata()).get("x-served-by"), name.decode())
    expect("server", list(server(b"5", timeout=10)), [name + b" %d" % i for i in range(5)])
    pieces = [b"x" * 10000] * 50
    expect("client", client(iter(pieces), timeout=20), name + b" 500000")
    words = [b"one", b"two", b"three"]
    expect("both", list(both(iter(words), timeout=10)), [name + b" " + word for word in words])
    expect("large", len(unary(b"y" * 3_000_000, timeout=20)), 3_000_001 + len(name))
    expect("error", status(lambda: unary(b"broken", timeout=10)), "FAILED_PRECONDITION")
    expect("unknown", status(lambda: channel.unary_unary("/test.Echo/None")(b"", timeout=10)), "UNIMPLEMENTED")
    began = time.time()
    expect("deadline", status(lambda: unary(b"never", timeout=0.5)), "DEADLINE_EXCEEDED")
    expect("in time", time.time() - began < 3, True)
    call = server(b"100000", timeout=60)
    next(call)
    call.cancel()
    expect("cancelled", call.code().name, "CANCELLED")
    expect("afterwards", unary(b"hello", timeout=10), name + b" hello")
elif mode == "status":
    print(status(lambda: unary(b"hello", timeout=10)))
else:
    stop = threading.Event()
    failures, done = [], [0]

    def calls():
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                unary(b"slow" if turn % 10 == 0 else b"hello", timeout=20)
                done[0] += 1
            except grpc.RpcError as error:
                failures.append(f"{error.code().name}: {error.details()}")

    def conversation():
        """One stream over all swaps: it ends where it began, since it was there before the first of them."""

        def words():
            while not stop.is_set():
                yield b"word"
                time.sleep(0.05)

        try:
            names = {reply.split(b" ")[0] for reply in both(words())}
            if len(names) != 1:
                failures.append(f"a stream was answered by {names}")
        except grpc.RpcError as error:
            failures.append(f"stream: {error.code().name}: {error.details()}")

    threads = [threading.Thread(target=calls) for _ in range(4)] + [threading.Thread(target=conversation)]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(f"{done[0]} calls, {len(failures)} failed", flush=True)
    if failures or done[0] == 0:
        sys.exit("\n".join(failures[:10]))
