#!/usr/bin/env python3
"""32 clients race `If-None-Match: *` on one key, ROUNDS (1,000) rounds: exactly one winner each, and what is stored is
the winner's. Usage: 05-race.py CLUSTER_JSON"""
import datetime, hashlib, hmac, http.client, json, os, sys, threading

CLIENTS, ROUNDS = 32, int(os.environ.get("ROUNDS", "1000"))
cluster = json.load(open(sys.argv[1]))
hosts = [node["s3"] for node in cluster["nodes"]]


def request(connection, host, method, path, body=b"", extra=None):
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    digest = hashlib.sha256(body).hexdigest()
    head = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    names = ";".join(sorted(head))
    canonical = "\n".join([method, path, ""] + [f"{k}:{head[k]}" for k in sorted(head)] + ["", names, digest])
    scope = f"{day}/{cluster['region']}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + cluster["secret_key"]).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    sign = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    head["authorization"] = (f"AWS4-HMAC-SHA256 Credential={cluster['access_key']}/{scope}, "
                             f"SignedHeaders={names}, Signature={sign}")
    connection.request(method, path, body, {**head, **(extra or {})})
    response = connection.getresponse()
    return response.status, response.read()


barrier, results = threading.Barrier(CLIENTS + 1), [None] * CLIENTS


def client(number):
    host = hosts[number % len(hosts)]
    connection = http.client.HTTPConnection(host)
    for turn in range(ROUNDS):
        barrier.wait()
        body = b"client %d turn %d" % (number, turn)
        results[number] = request(connection, host, "PUT", f"/race/key-{turn}", body, {"If-None-Match": "*"})[0]
        barrier.wait()


def main():
    main_connection = http.client.HTTPConnection(hosts[0])
    status, text = request(main_connection, hosts[0], "PUT", "/race")
    assert status == 200, text
    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for turn in range(ROUNDS):
        barrier.wait()
        barrier.wait()
        winners = [number for number, status in enumerate(results) if status == 200]
        losers = [status for status in results if status not in (200, 412, 409)]
        status, body = request(main_connection, hosts[0], "GET", f"/race/key-{turn}")
        if len(winners) != 1 or losers or body != b"client %d turn %d" % (winners[0], turn):
            print(f"DOES NOT HOLD: round {turn}: winners {winners}, other answers {losers}, stored {body!r}")
            sys.exit(1)
    print(f"holds: {ROUNDS} rounds of {CLIENTS} clients, exactly one winner each, and its bytes are stored")


main()
