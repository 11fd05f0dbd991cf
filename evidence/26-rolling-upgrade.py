"""Load for 26-rolling-upgrade.sh: clients on every gateway, each with keys of its own, which know what every key holds. A
request that fails is sent again as S3 clients do, to the next gateway; what is read or listed must be what was acknowledged. Ends when
DIR/stop is there: then every key is compared through every gateway. Also looks twice a second who leads which group."""
import collections, hashlib, http.client, json, os, random, sys, threading, time, urllib.request
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from s3 import S3

work, gateways = sys.argv[1], sys.argv[2:]
access, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
CLIENTS, KEYS, ATTEMPTS, PAUSE_S = 3, 40, 6, 0.2
SIZES = [100, 4096, 4096, 65536, 1 << 20]
stop = threading.Event()
lock = threading.Lock()
done = []      # (ended ms, operation, attempts, failed, milliseconds)
wrong = []
leaders = []   # (ms, {group: node})


def body(seed, size):
    block = hashlib.sha512(str(seed).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class Client:
    def __init__(self, gateway, number):
        self.gateway, self.name = gateway, f"c{gateway}-{number}"
        self.random = random.Random(self.name)
        self.doors = [S3(host, access, secret, timeout=30) for host in gateways]
        self.holds = {}
        self.written = 0

    def request(self, operation, *arguments, **named):
        """The answer of the first attempt that is one; counted."""
        began = time.time()
        for attempt in range(ATTEMPTS):
            door = self.doors[(self.gateway + attempt) % len(self.doors)]
            try:
                status, answer = door.request(*arguments, **named)
                if status < 500:
                    break
                why = f"{status} {answer[:200]}"
            except (OSError, http.client.HTTPException) as error:
                door.reconnect()
                why = repr(error)
            status, answer = 0, b""
            if attempt + 1 < ATTEMPTS:
                time.sleep(self.random.uniform(0.5, 1) * min(PAUSE_S * 2 ** attempt, 5))
        with lock:
            done.append((time.time() * 1000, operation, attempt + 1, status == 0, (time.time() - began) * 1000))
            if status == 0:
                wrong.append(f"{operation} {arguments[1]} failed after {ATTEMPTS} attempts: {why}")
        return status, answer

    def expect(self, is_right, what):
        if not is_right:
            with lock:
                wrong.append(f"{self.name}: {what}")

    def one(self):
        key = f"{self.name}/k{self.random.randrange(KEYS)}"
        path, choice = f"/load/{key}", self.random.random()
        if choice < 0.4:
            self.written += 1
            held = (f"{key} {self.written}", self.random.choice(SIZES))
            status, answer = self.request("PUT", "PUT", path, body(*held))
            self.expect(status in (200, 0), f"PUT {key}: {status} {answer[:200]}")
            # Of one that failed nobody knows what it did.
            self.holds[key] = held if status == 200 else None
        elif choice < 0.8:
            status, answer = self.request("GET", "GET", path)
            self.compare(key, status, answer)
        elif choice < 0.9:
            status, answer = self.request("DELETE", "DELETE", path)
            self.expect(status in (204, 0), f"DELETE {key}: {status} {answer[:200]}")
            if status == 204:
                self.holds.pop(key, None)
            else:
                self.holds[key] = None
        else:
            query = f"list-type=2&max-keys=1000&prefix={self.name}%2F"
            status, answer = self.request("LIST", "GET", "/load", query=query)
            self.list(status, answer)

    def compare(self, key, status, answer):
        if status == 0 or (key in self.holds and self.holds[key] is None):
            return
        if key not in self.holds:
            return self.expect(status == 404, f"{key} is there after its deletion: {status}")
        self.expect(status == 200 and answer == body(*self.holds[key]), f"{key} is not what was written: {status}")

    def list(self, status, answer):
        if status == 0 or None in self.holds.values():
            return
        text = answer.decode()
        listed = {piece.split("</Key>")[0] for piece in text.split("<Key>")[1:]}
        self.expect(status == 200 and listed == set(self.holds), f"the list is wrong: {listed ^ set(self.holds)}")

    def run(self):
        while not stop.is_set():
            self.one()
            time.sleep(0.02)

    def verify(self):
        """Every key through every gateway."""
        for door in range(len(self.doors)):
            # Its node may have been started anew since.
            self.doors[door].reconnect()
            for number in range(KEYS):
                key = f"{self.name}/k{number}"
                status, answer = self.doors[door].request("GET", f"/load/{key}")
                self.compare(key, status, answer)
            status, answer = self.doors[door].request("GET", "/load", query=f"list-type=2&max-keys=1000&prefix={self.name}%2F")
            self.list(status, answer)
        return len(self.holds)


def watch():
    admins = [f"{host.split(':')[0]}:{int(host.split(':')[1]) + 1}" for host in gateways]
    while not stop.is_set():
        for admin in admins:
            try:
                report = json.load(urllib.request.urlopen(f"http://{admin}/status", timeout=2))
                leaders.append((time.time() * 1000, {group["id"]: group["leader"] for group in report["groups"]}))
                break
            except (OSError, ValueError):
                continue
        time.sleep(0.5)


S3(gateways[0], access, secret).request("PUT", "/load")
clients = [Client(gateway, number) for gateway in range(len(gateways)) for number in range(CLIENTS)]
threads = [threading.Thread(target=client.run) for client in clients] + [threading.Thread(target=watch, daemon=True)]
for thread in threads:
    thread.start()
while not os.path.exists(f"{work}/stop"):
    time.sleep(0.1)
stop.set()
for thread in threads[:-1]:
    thread.join()
verified = sum(client.verify() for client in clients)

steps = [line.rstrip("\n").split(" ", 4) for line in open(f"{work}/steps")]
steps = [(float(at), versions, name) for at, *versions, name in steps]
ends = [at for at, _, _ in steps[1:]] + [time.time() * 1000]
print(f"{'step':28} {'s':>5} {'requests':>8} {'retried':>7} {'failed':>6} {'longest gap ms':>14} {'slowest ms':>10}")
done.sort()
totals = collections.Counter()
for (begin, _, name), end in zip(steps, ends):
    inside = [event for event in done if begin <= event[0] < end]
    times = [begin] + [event[0] for event in inside if not event[3]] + [min(end, done[-1][0])]
    gap = max(max(0, b - a) for a, b in zip(times, times[1:]))
    retried, failed = sum(event[2] > 1 for event in inside), sum(event[3] for event in inside)
    totals.update(requests=len(inside), retried=retried, failed=failed)
    slowest = max((event[4] for event in inside), default=0)
    print(f"{name:28} {(end - begin) / 1000:5.0f} {len(inside):8} {retried:7} {failed:6} {gap:14.0f} {slowest:10.0f}")
print(f"all: {totals['requests']} requests, {totals['retried']} retried, {totals['failed']} failed after retries; {verified} objects verified through each gateway")

led = collections.Counter()
for (at, who), (until, _) in zip(leaders, leaders[1:]):
    step = max((step for step in steps if step[0] <= at), default=None)
    if step is None or len(set(step[1])) == 1 or "->" in step[2]:
        continue
    for group, leader in who.items():
        if leader:
            led[(group, step[1][leader - 1])] += (until - at) / 1000
for (group, version), seconds in sorted(led.items()):
    print(f"while versions were mixed, group {group} was led by the {version} one for {seconds:.0f} s")
for what in wrong[:20]:
    print(f"WRONG {what}")
both = {version for (_, version), seconds in led.items() if seconds >= 5}
if both != {"old", "new"}:
    print(f"WRONG only {both} led a group for 5 s while versions were mixed")
sys.exit(bool(wrong) or totals["failed"] > 0 or both != {"old", "new"})
