#!/usr/bin/env python3
"""See 56-slow-clients.sh. Usage: 56-slow-clients.py CLUSTER_JSON"""
import json, os, resource, selectors, socket, sys, threading, time
sys.path.insert(0, os.path.dirname(__file__))
from s3 import S3

SLOW, SECONDS = int(os.environ.get("SLOW", "1000")), int(os.environ.get("SECONDS_", "75"))
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
cluster = json.load(open(sys.argv[1]))
node = cluster["nodes"][0]
host, port = node["s3"].rsplit(":", 1)


def memory_mib():
    return int(open(f"/proc/{node['pid']}/statm").read().split()[1]) * 4096 >> 20


class Capture(S3):
    """Makes the head of a signed PUT without sending it."""
    def reconnect(self):
        outer = self

        class Fake:
            def request(self, method, path, body, headers):
                outer.head = (method, path, headers)

            def getresponse(self):
                raise EOFError
        self.connection = Fake()


def head_of(number):
    capture = Capture(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"])
    try:
        capture.request("PUT", f"/slow/k{number}", b"x" * 1_000_000)
    except EOFError:
        pass
    method, path, headers = capture.head
    lines = [f"{method} {path} HTTP/1.1"] + [f"{k}: {v}" for k, v in headers.items()] + ["content-length: 1000000", "", ""]
    return "\r\n".join(lines).encode()


def main():
    slow = S3(node["s3"], cluster["access_key"], cluster["secret_key"], cluster["region"], timeout=10)
    assert slow.request("PUT", "/slow")[0] == 200
    # Others are other tenants: whoever floods the gateway waits for itself.
    other = json.loads(os.environ["OTHER_KEY"])
    s3 = S3(node["s3"], other["access_key"], other["secret_key"], cluster["region"], timeout=10)
    assert s3.request("PUT", "/others")[0] == 200
    before, body_head = memory_mib(), head_of(0)
    # A third drips bodies, a third drips headers, a third connects and says nothing.
    sockets = []
    for number in range(SLOW):
        sock = socket.create_connection((host, int(port)))
        if number % 3 == 0:
            sock.sendall(body_head)
        sock.setblocking(False)
        sockets.append((sock, number % 3))
    print(f"{len(sockets)} slow clients are connected", flush=True)
    served, slowest, peak, end, cut = 0, 0.0, 0, time.monotonic() + SECONDS, set()

    def drip():
        while time.monotonic() < end:
            for i, (sock, kind) in enumerate(sockets):
                if i in cut:
                    continue
                try:
                    if kind != 2:
                        sock.send(b"x")
                    if sock.recv(65536) == b"":
                        cut.add(i)
                except BlockingIOError:
                    pass
                except OSError:
                    cut.add(i)
            time.sleep(1)
    threading.Thread(target=drip, daemon=True).start()
    while time.monotonic() < end:
        begin = time.monotonic()
        put, get = s3.request("PUT", "/others/quick", b"q" * 1000)[0], s3.request("GET", "/others/quick")[0]
        if (put, get) != (200, 200):
            sys.exit(f"DOES NOT HOLD: others were answered {put} and {get}")
        served, slowest, peak = served + 1, max(slowest, time.monotonic() - begin), max(peak, memory_mib())
        time.sleep(0.02)
    time.sleep(2)
    left = SLOW - len(cut)
    print(f"{served} PUTs and GETs of another client meanwhile, the slowest pair {slowest:.2f} s; memory {before} MiB before, "
          f"{peak} MiB at most; {len(cut)} of {SLOW} slow clients were cut off")
    if peak - before > 512:
        sys.exit("DOES NOT HOLD: memory")
    if left:
        sys.exit(f"DOES NOT HOLD: {left} slow clients are still connected after {SECONDS} s")


main()
